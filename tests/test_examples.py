"""Every example is S-SGD: what it trained is what the same steps by hand come to."""

import copy
import re
import subprocess
import sys
import warnings

import pytest
import torch
from explicit import Clipped, ulps
from torch import nn
from torch.func import functional_call

from seqssgd.optim.reference import ReferenceSymmetricNoise

for package in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(package, reason="pip install 'seqssgd[examples]'")
from programs import ROOT, load  # noqa: E402
from test_docs import DOCS, code  # noqa: E402

from seqssgd.optim import noise_groups  # noqa: E402

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
    assert path.stem == "tiny" or f"python examples/{path.name} [gpt2|lstm]\n" in path.read_text(encoding="utf-8")


def test_a_program_runs_beside_the_others():
    """In its folder, whose files hide packages of the same names."""
    out = subprocess.run([sys.executable, ROOT / "examples/accelerate_loop.py", "lstm"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert re.fullmatch(r"(step \d0: loss \d\.\d+ at w-n\n){3}loss without noise \d\.\d+\n", out.stdout)


def test_the_blocks_of_the_page_on_trainers_run_and_train():
    for package in ("ignite", "skorch"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their imports
            pytest.importorskip(package)
    names: dict = {"__name__": "page"}
    exec(compile(code(DOCS / "in_your_trainer.md"), "in_your_trainer.md", "exec"), names)
    assert names["optimizer"].draws == 3  # of four steps: the first is without noise
    module = names["Module"]()
    trainer = exactness.lightning_manual.trainer(**exactness.QUIET, max_steps=3)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=2))
    assert trainer.global_step == module.optimizers().draws == 3


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x)


def test_skorch_takes_the_steps_that_the_twin_takes():
    skorch = pytest.importorskip("skorch")
    names: dict = {"__name__": "page"}
    exec(compile(code(DOCS / "in_your_trainer.md"), "in_your_trainer.md", "exec"), names)
    clipping = ("clipping", skorch.callbacks.GradientNormClipping(0.1))
    net = names["MultiPassNet"](
        Rows, max_epochs=1, lr=0.1, batch_size=4, iterator_train__shuffle=False, train_split=None, verbose=0,
        callbacks=[clipping]
    ).initialize()  # fmt: skip
    twin = copy.deepcopy(net.module_)
    x = torch.randn(12, 3)
    net.partial_fit(x.numpy(), x.sum(1, keepdim=True).numpy())
    base = torch.optim.SGD(noise_groups(twin, noise=0.1), lr=0.1)
    by_hand = ReferenceSymmetricNoise(Clipped(base, 0.1))
    params = [p for group in base.param_groups for p in group["params"]]
    for batch in x.split(4):

        def gradients_at(weights, _, batch=batch):
            values = dict(zip(("linear.weight", "linear.bias"), weights, strict=True))
            leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
            loss = nn.functional.mse_loss(functional_call(twin, leaves, (batch,)), batch.sum(1, keepdim=True))
            return torch.autograd.grad(loss, list(leaves.values()))

        by_hand.step(gradients_at)
    assert len(params) == 2
    assert ulps(net.module_, twin) < 10
