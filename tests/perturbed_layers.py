"""Which parameters of a model get noise, by name, for the tests of the groups."""

from seqssgd.optim import noise_groups


def noisy(model, **options):
    """Parameter name -> layer name of all that gets the level; checks that every parameter is in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = noise_groups(model, noise=0.5, **options)
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    assert all(len(group["layers"]) == len(group["params"]) for group in groups)
    assert [group["noise"] for group in groups] == [0.5, 0.0][: len(groups)]
    for group in groups[1:]:
        assert group["layers"] == [names[id(p)] for p in group["params"]]
    return {names[id(p)]: layer for p, layer in zip(groups[0]["params"], groups[0]["layers"], strict=True)}
