"""training.precision auto: bf16 where the processor multiplies in it, and what a run has begun in it keeps."""

import pytest
import torch
import yaml
from torch import nn

from seqssgd.errors import UserError
from seqssgd.training import RunDirectory, TrainingConfig, fit
from seqssgd.training.precision import settle_precision

from test_recipe_cifar_programs import TRAIN, command, data  # noqa: F401  # isort: skip


@pytest.fixture
def machine(monkeypatch):
    """Makes torch believe in a processor with or without instructions for bf16, and in an LSTM for it or none."""

    def make(multiplies: bool, lstm: bool = True) -> None:
        found = {"avx2": True, "avx512_bf16": multiplies, "num_physical_cores": 2}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

        def forward(self, inputs):
            if not lstm:
                raise RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive")
            return inputs * 1, None

        monkeypatch.setattr(nn.LSTM, "forward", forward)

    return make


@pytest.mark.parametrize(
    "multiplies, lstm, model, wanted, said",
    [
        (True, True, nn.Linear(2, 2), "bf16", "training.precision auto is bf16\n"),
        (False, True, nn.Linear(2, 2), "fp32", "auto is fp32: this machine's CPU does not multiply in bf16\n"),
        (True, True, nn.LSTM(2, 2), "bf16", "training.precision auto is bf16\n"),
        (True, False, nn.LSTM(2, 2), "fp32", "auto is fp32: torch has no LSTM in bf16 here\n"),
        (True, False, nn.Linear(2, 2), "bf16", "training.precision auto is bf16\n"),
    ],
)
def test_it_is_bf16_where_processor_and_network_have_it(
    machine, tmp_path, capsys, multiplies, lstm, model, wanted, said
):
    machine(multiplies, lstm)
    config = TrainingConfig(precision="auto")
    settle_precision(model, config, tmp_path / "run")
    assert config.precision == wanted and capsys.readouterr().out.endswith(said)


def test_a_run_that_was_begun_keeps_its_precision_on_every_machine(machine, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("training: {precision: bf16}")
    machine(False)
    config = TrainingConfig(precision="auto")
    settle_precision(nn.Linear(2, 2), config, tmp_path)
    assert config.precision == "bf16" and capsys.readouterr().out == ""
    machine(False, lstm=False)
    with pytest.raises(UserError, match=r"training.precision: this machine's CPU cannot train this network \(LSTM\)"):
        settle_precision(nn.LSTM(2, 2), TrainingConfig(precision="auto"), tmp_path)


def test_a_recipe_writes_down_what_it_found_and_goes_on_with_it(machine, data, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    machine(True)
    options = command(data, run, "--training.precision", "auto")
    assert TRAIN.main([*options, "--max-minutes", "1e-9"]) == 0
    assert "training.precision auto is bf16" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["precision"] == "bf16"
    machine(False)
    assert TRAIN.main(options) == 0
    assert TRAIN.main(command(data, tmp_path / "other", "--training.precision", "bf16")) == 0
    weights = [
        torch.load(path / "checkpoints/best.pt", weights_only=True)["model"] for path in (run, tmp_path / "other")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_loop_of_ones_own_is_told_to_settle_it_first(tmp_path):
    with pytest.raises(ValueError, match="settle_precision"):
        fit(None, None, [], TrainingConfig(precision="auto"), RunDirectory(tmp_path / "run", {}))
