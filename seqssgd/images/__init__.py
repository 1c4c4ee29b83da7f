"""Image classification: settings, networks, the task, scoring, finished runs."""
