"""Every example is S-SGD: what it trained is what the same steps by hand come to."""

import re
import subprocess
import sys

import pytest
import torch
from explicit import ulps

for package in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(package, reason="pip install 'seqssgd[examples]'")
from programs import ROOT, load  # noqa: E402

exactness = load("benchmarks/exactness.py")
tiny = exactness.tiny
# of the trainers, not of the programs
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]
STEPS = 6


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("label", exactness.CASES)
def test_an_example_takes_the_steps_that_the_twin_takes(label, name, tmp_path):
    model, case = tiny.MODELS[name](), exactness.CASES[label]
    assert exactness.difference(case, model, STEPS, tmp_path) < 50  # of the thousands that noise alone makes:
    plain = tiny.MODELS[name]()
    plain.load_state_dict(model.state_dict())
    for one, noise in ((model, exactness.NOISE), (plain, 0.0)):
        torch.manual_seed(0)
        case.train(one, tiny.text(), STEPS, noise, tmp_path)
    assert ulps(model, plain) > 1e3


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 70
    assert path.stem == "tiny" or f"    python examples/{path.name} [gpt2|lstm]\n" in path.read_text(encoding="utf-8")


def test_a_program_runs_beside_the_others():
    """In its folder, whose files hide packages of the same names."""
    out = subprocess.run([sys.executable, ROOT / "examples/accelerate_loop.py", "lstm"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert re.fullmatch(r"(step \d0: loss \d\.\d+ at w-n\n){3}loss without noise \d\.\d+\n", out.stdout)
