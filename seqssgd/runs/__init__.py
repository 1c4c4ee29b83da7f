"""The run directory: what a training leaves behind, in one place that knows its names, writes it and reads it back.

``layout`` has the names, ``directory`` opens a run for training, ``settings`` are its configuration, ``metrics`` its
rows, ``checkpoints`` its weights, ``environment`` what else its numbers depend on; ``reading`` reads finished runs, and
``outputs`` says where nothing of theirs may be written.
"""
