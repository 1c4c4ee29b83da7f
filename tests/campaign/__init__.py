"""A campaign of faults: kills, power cuts, mutated inputs, hours of training; see __main__.py."""
