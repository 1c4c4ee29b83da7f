"""The program of the studies, and the studies and recipes that it knows."""

import sys

from programs import ROOT, load

sys.path.insert(0, str(ROOT / "recipes/studies"))  # what the program imports beside it

STUDY, TRAIN = load("recipes/studies/run.py"), load("recipes/ptb_lstm/train.py")
OVERRIDES = sys.modules["overrides"]
STUDIES, RECIPES = (STUDY.read_yaml(STUDY.HERE / f"{name}.yaml") for name in ("studies", "recipes"))
