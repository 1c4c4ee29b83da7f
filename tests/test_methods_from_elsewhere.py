"""A method that lies outside of the package: its settings in files, options and help, its runs, and what is refused."""

import os
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import forked
import pytest
import torch
from command_lines import Config, reader
from toy_task import toy_config, train

from seqssgd.errors import UserError
from seqssgd.optim import MultiPassOptimizer, OneSidedNoise, SymmetricNoise
from seqssgd.optim.limits import Range, check_settings, parameters, plain_type, unmet
from seqssgd.report.comparison import compare
from seqssgd.runs.reading import read_run
from seqssgd.training import OptimConfig, build_optimizer, methods

MODULE = """
    from typing import Annotated, Literal

    import torch
    from seqssgd.optim import MultiPassOptimizer, OneSidedNoise, RandomNoise, SinglePass
    from seqssgd.optim.limits import Range

    class Annealed(OneSidedNoise):
        '''One-sided noise that dies away.

        Args:
            base: the optimizer that steps.
            half_life: steps in which the noise falls to its half.
            shape: of its fall.
            settings: of OneSidedNoise.
        '''

        def __init__(self, base, *, half_life: Annotated[int, Range(ge=1)] = 10, shape: Literal["exp", "flat"] = "exp",
                     **settings):
            super().__init__(base, **settings)
            self.half_life, self.shape = half_life, shape

        def perturb(self, part, entries):
            super().perturb(part, entries)
            if self.shape == "exp":
                for entry in entries:
                    entry.weight.lerp_(entry.saved, 1 - 0.5 ** (self.draws / self.half_life))

    class Slow(SinglePass):
        def __init__(self, base, *, wait: int, lr: float, model=None):
            super().__init__(base)
            self.wait, self.told = wait, lr

    class Untold(SinglePass):
        def __init__(self, base, *, wait):
            super().__init__(base)

    class Unmoved(MultiPassOptimizer):
        def pass_signs(self):
            return (+1,)

    class Unfinished(MultiPassOptimizer): ...

    class Passless(OneSidedNoise):
        def pass_signs(self):
            return ()

    class Twice(RandomNoise):
        def __init__(self, base, **settings):
            super().__init__(base, distribution="gaussian", **settings)

        def pass_signs(self):
            return (+1,)

    class Clashing(SinglePass):
        def __init__(self, base, *, method: str = "a", **settings):
            super().__init__(base, **settings)

    class Halving(SinglePass):
        def __init__(self, base, *, halves: bool = False, **settings):
            super().__init__(base, **settings)

    def some_function(base): ...
"""


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Reads a command line, where a module with methods is on the path; yaml=… becomes a file given by --config."""
    (tmp_path / "elsewhere.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "broken_elsewhere.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    methods.find_method.cache_clear()
    read = reader(tmp_path)
    yield lambda *options, **given: read(*options, **given).config
    methods.find_method.cache_clear()


NAMED = "optim: {method: 'elsewhere:Annealed', noise: 0.3, half_life: 4}"


def test_its_settings_are_keys_and_options_and_come_from_its_signature(parse):
    for config in (
        parse(yaml=NAMED),
        parse("--optim.method", "elsewhere:Annealed", "--optim.noise", "0.3", "--optim.half_life=4"),
        parse("--optim", "{method: 'elsewhere:Annealed', noise: 0.3, half_life: 4}"),
        parse("--optim.half_life", "4", yaml=NAMED.replace("half_life: 4", "half_life: 9")),
    ):
        optim = config.optim
        assert isinstance(config, Config) and isinstance(optim, OptimConfig)
        assert (optim.noise, optim.half_life, optim.shape, optim.copies) == (0.3, 4, "exp", 1)
        assert (optim.distribution, optim.granularity, optim.rho) == ("rademacher", "layer", None)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), optim)
    assert type(optimizer).__name__ == "Annealed" and (optimizer.half_life, optimizer.shape) == (4, "exp")
    assert [group["noise"] for group in optimizer.param_groups] == [0.3, 0.0]
    baseline = parse("--optim.method", "none", yaml=NAMED).optim  # of its file
    assert baseline.half_life == 4
    assert OptimConfig.restored(asdict(baseline)) == OptimConfig(noise=0.3)
    assert OptimConfig.restored(asdict(config.optim)) == config.optim
    with pytest.raises(TypeError, match="half_life"):
        OptimConfig.restored({"method": "ssgd", "noise": 0.3, "half_life": 4})


def test_what_it_does_not_ask_for_it_does_not_get(parse):
    optim = parse("--optim.method", "elsewhere:Slow", "--optim.wait", "3", "--optim.lr", "0.2").optim
    optimizer = build_optimizer(torch.nn.Linear(2, 2), optim)
    assert (optimizer.wait, optimizer.told) == (3, 0.2) and not optim.takes("noise")


@pytest.mark.parametrize(
    "options, message",
    [
        ("elsewhere:Annealed --optim.noise 0.3 --optim.half_life 0", "optim.half_life: 0 is not a whole number >= 1"),
        ("elsewhere:Annealed --optim.noise 0.3 --optim.half_life x", "optim.half_life: expected int"),
        ("elsewhere:Annealed --optim.noise 0.3 --optim.shape sin", "optim.shape: 'sin' is not one of exp, flat"),
        ("elsewhere:Annealed --optim.noise 0.3 --optim.halflife 2", "optim.halflife: no such setting; did you mean"),
        ("elsewhere:Annealed --optim.noise 0.3 --optim.rho 2", "optim.rho: elsewhere:Annealed has no such setting"),
        ("elsewhere:Annealed", "optim.noise: elsewhere:Annealed without a level is sgd alone"),
        ("elsewhere:Annealed --optim.noise 70", "optim.noise: 70.0 is not at most 2"),
        ("ssgd --optim.noise 0.3 --optim.half_life 2", "optim.half_life: no such setting"),
        ("elsewhere:Slow --optim.wait 2 --optim.noise 0.2", "optim.noise: elsewhere:Slow has no such setting"),
        ("elsewhere:Untold", "optim.method: elsewhere:Untold does not say of what type its wait is"),
        ("elsewhere:Unmoved", "optim.method: elsewhere:Unmoved is not finished: it has no perturb$"),
        ("elsewhere:Unfinished", "optim.method: .*Unfinished is not finished: it has no pass_signs and no perturb$"),
        ("elsewhere:Clashing", "optim.method: elsewhere:Clashing: its setting 'method' has the name of one of the"),
        ("elsewhere:Halving", "optim.method: elsewhere:Halving: its setting 'halves' has the name of one of the"),
        ("elsewhere:Nothing", "optim.method: elsewhere:Nothing: module 'elsewhere' has no attribute 'Nothing'"),
        ("elsewhere:some_function", "optim.method: elsewhere:some_function is no class derived from"),
        ("torch.optim:SGD", "optim.method: torch.optim:SGD is no class derived from .*; it goes to optim.base"),
        ("no_such_module:X", "optim.method: no_such_module:X: No module named 'no_such_module'; install it, or name"),
        ("broken_elsewhere:X", "optim.method: broken_elsewhere:X: No module named 'no_such_package'$"),
        ("elsewhere", "optim.method: 'elsewhere' is not one of none, ssgd, .*, or module:Class"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(parse, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        parse("--optim.method", *options.split())
    with pytest.raises(UserError, match=r"^optim.half_life: 4 does nothing, after --optim.method none"):
        parse("--optim.method", "none", "--optim.half_life", "4", yaml=NAMED.replace("half_life: 4", "half_life: 5"))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("Passless", [], r"optim: Passless.pass_signs\(\) gave \(\); it must give a sign for each pass"),
        ("Twice", ["--optim.distribution", "gaussian", "--optim.granularity", "layer"],
         r"optim.method: elsewhere:Twice sets distribution and has it among its \*\*settings too; name it"),
    ],
)  # fmt: skip
def test_what_shows_only_when_it_is_built_is_refused_before_training(parse, name, options, message):
    optim = parse("--optim.method", f"elsewhere:{name}", "--optim.noise", "0.3", *options).optim
    with pytest.raises(UserError, match=f"^{message}"):
        build_optimizer(torch.nn.Linear(2, 2), optim)


def test_a_required_setting_is_asked_for(parse):
    optim = parse("--optim.method", "elsewhere:Slow").optim
    with pytest.raises(UserError, match="optim: elsewhere:Slow needs optim.wait"):
        build_optimizer(torch.nn.Linear(2, 2), optim)


def test_help_shows_its_settings(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--optim.method", "elsewhere:Annealed", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    half_life = "Of elsewhere:Annealed: steps in which the noise falls to its half; by default 10."
    assert f"--optim.half_life HALF_LIFE {half_life}" in shown
    assert "by default layer of weight_noise, two_draws; absolute of smoothout, graves, nso;" in shown


def test_it_trains_goes_on_and_is_compared(parse, tmp_path):
    optim = {"method": "elsewhere:Annealed", "noise": 0.3, "half_life": 3, "lr": 0.1}
    config = toy_config(training={"epochs": 2})
    config.optim = OptimConfig.restored(optim)
    whole, _ = train(tmp_path / "whole", config)
    stopped, _ = train(tmp_path / "stopped", config, max_minutes=1e-9)
    assert whole["finished"] and not stopped["finished"]
    again, _ = train(tmp_path / "stopped", config)
    assert again["final"] == whole["final"]
    assert "half_life: 3" in (tmp_path / "whole/config.yaml").read_text()
    train(tmp_path / "plain", toy_config({"method": "none", "noise": 0.0, "lr": 0.1}, {"epochs": 2}))
    comparison = compare([read_run(tmp_path / name) for name in ("whole", "plain")])
    assert {row.group.label for row in comparison.rows} == {"Annealed 0.3", "SGD"}


def test_a_program_finds_it_on_the_path(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/outside.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("x")
    program = Path(__file__).parents[1] / "recipes/ptb_lstm/train.py"
    command = [sys.executable, str(program), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    command += ["--optim.method", "outside:Annealed", "--optim.half_life", "0", "--optim.noise", "0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "mine"), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "optim.half_life: 0 is not a whole number >= 1" in done.stderr
    elsewhere = forked.program(*command[1:], log=tmp_path / "log")
    elsewhere.join(100)
    said = (tmp_path / "log").read_text()
    assert elsewhere.exitcode == 2 and "No module named" in said and said.count("\n") == 1


# ---- signatures ------------------------------------------------------------------------------------------------------


def test_a_signature_says_what_a_value_may_be():
    whole, share, choice = Annotated[int, Range(ge=1)], Annotated[float, Range(ge=0, lt=1)], Literal["a", "b"]
    for annotation, values, wrong, wanted in (
        (whole, (1, 7), (0, 1.0, True, None, "1"), "a whole number >= 1"),
        (share, (0, 0.5), (1, -0.1, float("nan"), None), "a number >= 0 and < 1"),
        (float, (-1e9, 3), (float("inf"), 1e31, None, False), "a finite number"),
        (whole | None, (None, 2), (0,), "a whole number >= 1, or null"),
        (choice, ("a",), ("c", None, 1), "one of a, b"),
        (choice | Literal["b", "c"] | None, ("c", None), ("d",), "one of a, b, c, or null"),
        (str, ("x",), (None,), "of type str"),
    ):
        assert all(unmet(annotation, value) is None for value in values)
        assert {unmet(annotation, value) for value in wrong} == {wanted}
    assert (plain_type(whole), plain_type(choice), plain_type(share | None)) == (int, str, float | None)


def test_parameters_follow_settings_that_are_handed_on():
    found = parameters(OneSidedNoise)
    assert list(found) == ["base", "copies", "distribution", "granularity", "seed", "model", "bn_stats"]
    assert found["distribution"].default == "rademacher"
    assert list(parameters(MultiPassOptimizer)) == ["base", "model", "bn_stats"]
    with pytest.raises(ValueError, match="signs='half' must be one of batch, halves"):
        check_settings(SymmetricNoise, signs="half")
