"""Language modelling: settings, the task, scoring, generation, finished runs."""
