"""What an import costs, and that torch is all that ``seqssgd.optim`` and the models need."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
import json, sys

ABSENT = set(json.loads(sys.argv[1]))


class Without:
    # A finder that does not find them, as if they were not installed.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch

before = set(sys.modules)
import seqssgd

alone = sorted(set(sys.modules) - before)
before = set(sys.modules)
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.optim import SymmetricNoise, noise_groups

with_optim = sorted(set(sys.modules) - before)
model = LSTMLanguageModel(11, 4, 1)
optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.5)), model=model, bn_stats="first")
for _ in optimizer.passes():
    model(torch.randint(11, (5, 2)))[0].sum().backward()
optimizer.step()
print(json.dumps({"alone": alone, "with_optim": with_optim, "absent": sorted(ABSENT & set(sys.modules))}))
"""


def extras() -> set[str]:
    """The import names of every package that the project can use and does not require, and of what they bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line.split(">")[0] for line in project["dependencies"]] == ["torch"]
    import_names = {"pyyaml": "yaml", "pillow": "PIL", "flashlight-text": "flashlight"}
    lines = [line for group in project["optional-dependencies"].values() for line in group]
    names = {line.split(">")[0].split("[")[0] for line in lines}
    assert {"numpy", "datasets", "jsonargparse"} <= names
    return {import_names.get(name, name.replace("-", "_")) for name in names} | {
        "pandas",
        "pyarrow",
        "scipy",
        "soundfile",
        "torchaudio",
    }


def test_optim_and_models_train_with_torch_alone_and_load_nothing_else():
    command = [sys.executable, "-c", PROGRAM, json.dumps(sorted(extras()))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert loaded["alone"] == ["seqssgd"]  # costs nothing beyond torch itself
    # nor does the optimizer load more of torch than torch itself does: FSDP and DTensor would double the time
    assert all(name.startswith("seqssgd.") for name in loaded["with_optim"]), loaded["with_optim"]
    assert "seqssgd.optim.symmetric" in loaded["with_optim"] and "seqssgd.models.lstm" in loaded["with_optim"]
    packages = {name.split(".")[1] for name in loaded["with_optim"]}
    assert packages == {"optim", "models"}
    assert loaded["absent"] == []
