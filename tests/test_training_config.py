"""The command line of every recipe: what is read, and what is refused."""

import dataclasses
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from command_lines import Config, ModelConfig, reader
from programs import load

from seqssgd.errors import UserError, run_cli
from seqssgd.training import OptimConfig, TrainingConfig, parse_recipe, setup
from seqssgd.training.methods import METHODS

PTB_TRAIN = Path(__file__).parents[1] / "recipes/ptb_lstm/train.py"


@pytest.fixture
def parse(tmp_path):
    return reader(tmp_path)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_without_options_everything_has_its_default(parse, tmp_path):
    command = parse()
    assert command.config == Config()
    assert (command.data, command.out) == (tmp_path / "data", tmp_path / "run")
    assert command.max_steps is command.max_minutes is None


YAML = """
model: {size: 7}
optim:
  method: ssgd
  noise: 0.5
  lr: 1e-3  # YAML 1.1 itself takes this for a string
  base: adam
  betas: [0.8, 0.9]
  only: [recurrent, dense]
  noise_schedule: 75-25S
  noise_ramp: [1, 2]
training: {epochs: 4, clip: 0.25}
seed: 5
"""


def test_a_file_is_read_and_options_go_before_it(parse):
    command = parse("--optim.lr", "0.5", "--seed=9", "--max-steps", "12", "--training.clip=null", yaml=YAML)
    optim = OptimConfig(
        method="ssgd",
        noise=0.5,
        lr=0.5,
        base="adam",
        betas=(0.8, 0.9),
        only=["recurrent", "dense"],
        noise_schedule="75-25S",
        noise_ramp=(1, 2),
    )
    training = TrainingConfig(epochs=4, clip=None)
    assert command.config == Config(ModelConfig(7), optim, training, seed=9)
    assert (command.max_steps, command.max_minutes) == (12, None)
    assert isinstance(command.config.optim, OptimConfig) and asdict(command.config)["optim"]["betas"] == (0.8, 0.9)
    assert parse(yaml=YAML).config.optim.lr == 1e-3
    assert parse("--max-minutes", "0.5").max_minutes == 0.5


def test_an_option_wins_wherever_it_stands(parse, tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("optim: {lr: 0.1, momentum: 0.1, method: ssgd, noise: 0.1}\nseed: 1")
    second.write_text("optim: {lr: 0.2, momentum: 0.2}\nseed: 2")
    for options in (
        ["--optim.lr", "0.9", "--config", str(first), "--config", str(second)],
        ["--config", str(first), "--optim.lr", "0.9", f"--config={second}"],
        [f"--config={first}", f"--config={second}", "--optim.lr=0.9"],
    ):
        config = parse(*options).config
        assert (config.optim.lr, config.optim.momentum, config.optim.noise, config.seed) == (0.9, 0.2, 0.1, 2)


# ---- what is refused, in one line that names the key -----------------------------------------------------------------

WRONG_OPTIONS = {  # what is given: how the message begins
    "--optim.nosie 0.5": "optim.nosie: no such setting; did you mean optim.noise?",
    "--optim.nois 0.5": "optim.nois: no such setting; did you mean optim.noise?",  # no abbreviations
    "--max_steps 5": "max_steps: no such setting; did you mean max-steps?",
    "--optim.lr=": "optim.lr: expected float, got ''",
    "--training.clip=": "training.clip: expected float, or null, got ''",
    "--training.precision=": "training.precision: expected one of 'fp32', 'bf16', 'fp16', 'auto', got ''",
    "--optim.only=": "optim.only: '' is no list of 'recurrent', 'conv'",
    "--max-minutes=": "max_minutes: expected float, or null, got ''",
    "--conf x.yaml": "conf: no such setting; --help lists them all",
    "--trainin.epochs=3": "trainin.epochs: no such setting; did you mean training.epochs?",
    "--training.lr 3": "training.lr: no such setting; did you mean training",
    "--qqq 1": "qqq: no such setting; --help lists them all",
    "--optim.lr fast": "optim.lr: expected float, got fast",
    "--optim.noise 50%": "optim.noise: expected float, got 50%; a share is a fraction, 0.5",
    "--optim.lr 0": "optim.lr: 0.0 is not a finite number > 0",
    "--optim.lr=-1": "optim.lr: -1.0 is not a finite number > 0",
    "--optim.lr nan": "optim.lr: ",
    "--optim.lr inf": "optim.lr: ",
    "--optim.noise=-0.1": "optim.noise: -0.1 is not a finite number >= 0",
    "--optim.noise nan": "optim.noise: ",
    "--optim.method ssgd --optim.noise 70": "optim.noise: 70.0 is not at most 2 (a fraction; for 70 percent give 0.7)",
    "--optim.noise inf": "optim.noise: ",
    "--optim.momentum=-1": "optim.momentum: -1.0 is not a number >= 0 and < 1",
    "--optim.weight_decay=-1": "optim.weight_decay: -1.0 is not a finite number >= 0",
    "--optim.betas [0.9]": "optim.betas: [0.9] is not [float, float]; write it so, in brackets, or null",
    "--optim.betas 0.9": "optim.betas: 0.9 is not [float, float]; write it so, in brackets, or null",
    "--optim.base_settings 3": "optim.base_settings: expected a mapping, such as {name: value}, or null, got 3",
    "--optim.betas [0.9,1.0]": "optim.betas: (0.9, 1.0) is not two numbers >= 0 and < 1",
    "--optim.method sgd": "optim.method: 'sgd' is not one of none, ssgd",
    "--optim.base rprop": "optim.base: 'rprop' is not one of sgd, adam, adamw",
    "--optim.signs half": "optim.signs: 'half' is not one of batch, halves, steps, ranks, pairs, one",
    "--optim.distribution normal": "optim.distribution: 'normal' is not one of rademacher, gaussian, uniform",
    "--optim.granularity model": "optim.granularity: 'model' is not one of tensor, layer, filter, filter_std, absolute",
    "--optim.only [lstm]": "optim.only: ['lstm'] is no list of 'recurrent', 'conv', 'dense', 'embedding', 'other'; ",
    "--optim.only lstm": "optim.only: lstm is no list of 'recurrent', 'conv'",
    "--optim.noise_schedule 75S25": "optim.noise_schedule: phases '75S25': write lengths joined by hyphens",
    "--optim.noise_ramp [1]": "optim.noise_ramp: [1] is not [int, int]; ",
    "--optim.noise_ramp [-1,2]": "optim.noise_ramp: ramp(start=-1, length=2): both must be >= 0",
    "--optim.lr_schedule linear": "optim.lr_schedule: 'linear' is not one of constant, zaremba, sgdr, cosine, steps",
    "--optim.lr_divisor 0": "optim.lr_divisor: 0.0 is not a finite number >= 1",
    "--optim.lr_schedule zaremba --optim.lr_divisor 0.5": "optim.lr_divisor: 0.5 is not a finite number >= 1",
    "--optim.lr_schedule steps --optim.lr_divisor nan": "optim.lr_divisor: ",
    "--optim.lr_schedule sgdr --optim.lr_period 0": "optim.lr_period: 0 is not a finite number >= 1",
    "--optim.lr_milestones 5": "optim.lr_milestones: 5 is no list; write it in brackets: [5]",
    "--optim.lr_milestones [-5]": "optim.lr_milestones: [-5] is not a list of epochs >= 0",
    "--training.epochs 0": "training.epochs: 0 is not a whole number >= 1",
    "--training.epochs 1.5": "training.epochs: expected int, got 1.5",
    "--training.epochs true": "training.epochs: expected int, got True",
    "--training.accumulate=-1": "training.accumulate: -1 is not a whole number >= 1",
    "--training.clip 0": "training.clip: 0.0 is not a finite number > 0, or null",
    "--training.clip nan": "training.clip: ",
    "--training.checkpoint_every 0": "training.checkpoint_every: 0 is not a finite number > 0, or null",
    "--training.patience 0": "training.patience: 0 is not a finite number > 0, or null",
    "--training.precision fp8": "training.precision: expected one of 'fp32', 'bf16', 'fp16', 'auto', got fp8",
    "--training.device tpu": "training.device: expected one of 'auto', 'cpu', 'cuda', got tpu",
    "--training.deterministic maybe": "training.deterministic: expected bool, got maybe",
    "--optim 5": "optim: '5' is not a group of settings; see --help for them",
    "--config=": "--config: '' is not the name of a file; give one",
    "--data=": "--data: '' is not the name of a folder; give one",
    "--out=": "--out: '' is not the name of a folder; give one",
    "--seed x": "seed: expected int, got x",
    "--max-steps 0": "--max-steps: 0 is not a number > 0",
    "--max-steps 1.5": "max_steps: ",
    "--max-minutes=-2": "--max-minutes: -2.0 is not a number > 0",
    "--max-minutes nan": "max_minutes: ",
    "--config": "argument --config: expected one argument",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_options_are_refused_in_one_line_that_names_them(parse, options):
    with pytest.raises(UserError) as caught:
        parse(*options.split())
    message = str(caught.value)
    assert message.startswith(WRONG_OPTIONS[options]) and "\n" not in message


WRONG_YAML = {
    "optim: {lrr: 1}": "optim.lrr: no such setting; did you mean optim.lr?",
    "optm: {lr: 1}": "optm.lr: no such setting; did you mean optim.lr?",
    "sed: 1": "sed: no such setting; did you mean seed?",
    "optim: {lr: fast}": "optim.lr: expected float, got fast",
    "optim: {lr: .nan}": "optim.lr: nan is not a finite number > 0",
    "optim: {lr: .inf}": "optim.lr: inf is not a finite number > 0",
    "optim: {noise: .nan}": "optim.noise: nan is not a finite number >= 0",
    "optim: {noise: -1}": "optim.noise: -1.0 is not a finite number >= 0",
    "optim: {noise_schedule: 75}": "optim.noise_schedule: ",
    "optim: {noise_schedule: abc}": "optim.noise_schedule: phases 'abc'",
    "optim: {signs: half}": "optim.signs: 'half' is not one of batch, halves, steps, ranks, pairs, one",
    "training: {epochs: 3.0}": "training.epochs: expected int, got 3.0",
    "training: {epochs: many}": "training.epochs: expected int, got many",
    "training: {clip: .inf}": "training.clip: inf is not a finite number > 0, or null",
    "optim: 5": "optim: 5 is not a group of settings",
    "training: null": "training: None is not a group of settings",
    "optim: {lr: 1": "--config FILE: no settings in YAML (expected ',' or '}'",
    "a: b: c": "--config FILE: no settings in YAML (mapping values are not allowed",
    "\tseed: 1": "--config FILE: no settings in YAML (found character '\\t'",
    "- seed\n- optim": "--config FILE: no settings in YAML (- seed - optim)",
    "thesis": "--config FILE: no settings in YAML (thesis)",
    "": "--config FILE: no settings in YAML (nothing at all)",
    b"seed: \xff\xfe": "--config FILE: no settings in YAML (not UTF-8: wrong byte at offset 6)",
    'seed: !!python/object/apply:os.system ["exit 1"]': "--config FILE: no settings in YAML (could not determine",
}


@pytest.mark.parametrize("yaml", WRONG_YAML)
def test_wrong_files_are_refused_in_one_line_that_names_key_or_file(parse, tmp_path, yaml):
    with pytest.raises(UserError) as caught:
        parse(yaml=yaml)
    message = str(caught.value)
    assert message.startswith(WRONG_YAML[yaml].replace("FILE", str(tmp_path / "c.yaml"))) and "\n" not in message


def test_a_missing_file_or_folder_is_refused_and_named(parse, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")  # what <(…) gives; it would be read once more, and waited for
    for options, wanted in (
        *(
            ([f"--config={name}"], f"--config: {name!r} is not a file{why}; give the name of one")
            for why, names in {
                "": (str(tmp_path / "none.yaml"), str(tmp_path)),
                " (a pipe can be read only once)": (str(tmp_path / "pipe"), "-"),
            }.items()
            for name in names
        ),
        (["--out", os.fsdecode(b"gr\xf6\xdfe")], "--out: 'gr\\udcf6\\udcdfe' is not a name in UTF-8"),
        (["--data", str(tmp_path / "none")], f"--data {tmp_path / 'none'}: not a folder; prepare the data"),
        (["--data", str(tmp_path / "empty")], f"--data {tmp_path / 'empty'}: an empty folder; prepare the data"),
        (["--data", __file__], f"--data {__file__}: not a folder; prepare the data"),
    ):
        with pytest.raises(UserError) as caught:
            parse(*options)
        assert str(caught.value).startswith(wanted) and "\n" not in str(caught.value)
    for missing in ("data", "out"):
        given = {"data": "--out", "out": "--data"}[missing]
        with pytest.raises(UserError, match=f"required: {missing}$"):
            parse_recipe(Config, [given, str(tmp_path / "data")])


def test_the_same_checks_hold_for_configurations_that_programs_build():
    for make, key in (
        (lambda: OptimConfig(lr=float("nan")), "optim.lr"),
        (lambda: OptimConfig(noise=float("inf")), "optim.noise"),
        (lambda: OptimConfig(noise_schedule="S"), "optim.noise_schedule"),
        (lambda: TrainingConfig(precision="fp8"), "training.precision"),
        (lambda: TrainingConfig(device="tpu"), "training.device"),
        (lambda: TrainingConfig(threads=0), "training.threads"),
    ):
        with pytest.raises(UserError, match=f"^{key}: "):
            make()


def test_settings_that_only_the_machine_can_refuse():
    with pytest.raises(UserError, match=r"^seed: 9{30} is not a whole number"):
        setup(TrainingConfig(), 10**30 - 1)
    for make in (lambda: setup(TrainingConfig(), -7), lambda: OptimConfig(noise_seed=-7)):
        with pytest.raises(UserError, match=r"seed: -7 is not a whole number from 0 to .*; give 7, or any other"):
            make()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="^training.device: cuda is not available here"):
            setup(TrainingConfig(device="cuda"), 0)


@pytest.mark.parametrize("given", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "RANK": "x"}])
def test_half_of_what_torchrun_says_is_refused(monkeypatch, given):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="^WORLD_SIZE is set, but not as torchrun does .*; use torchrun, or unset it$"):
        setup(TrainingConfig(device="cpu"), 0)


def test_what_torchrun_would_not_set_is_refused_and_an_empty_variable_is_none(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "")
    assert setup(TrainingConfig(device="cpu"), 0) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(UserError, match="^LOCAL_RANK is 'one', and no number; use torchrun, or unset it$"):
        setup(TrainingConfig(device="cpu"), 0)


def test_more_processes_than_cuda_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="^LOCAL_RANK 1: there are 1 CUDA devices here; start one process for each$"):
        setup(TrainingConfig(device="cuda"), 0)


def test_a_program_ends_with_one_line_and_status_2(tmp_path):
    (tmp_path / "bad.yaml").write_text("optim: {nosie: 0.7}")
    options = ["--config", str(tmp_path / "bad.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(PTB_TRAIN), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: optim.nosie: no such setting; did you mean optim.noise?\n"
    assert not (tmp_path / "run").exists()


def test_the_exit_status_is_that_of_the_error(capsys):
    assert run_cli(lambda: parse_recipe(Config, ["--seed", "x"])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        parse_recipe(Config, ["--help"])
    shown = capsys.readouterr().out
    assert not caught.value.code and "the noise level c" in shown and "--training.patience" in shown


def empty_settings(config_class: type, known: set[type], path: tuple[str, ...] = ()):
    """YAML in which one setting, or group of settings, has no value; for each but those of sections that are known."""
    for each in dataclasses.fields(config_class):
        here = (*path, each.name)
        yield here, "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(here))
        if dataclasses.is_dataclass(each.type) and each.type not in known:
            yield from empty_settings(each.type, known, here)


@pytest.mark.parametrize("recipe", ["ptb_lstm", "wsj_sgcn", "cifar_cnn", "imagenet_resnet"])
def test_a_setting_without_a_value_is_null_or_refused_by_name(tmp_path, recipe):
    config_class = load(f"recipes/{recipe}/train.py").Config
    known = set() if recipe == "ptb_lstm" else {OptimConfig, TrainingConfig}  # which all recipes have
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("x")
    file = tmp_path / "c.yaml"
    settings, refused = dict(empty_settings(config_class, known)), 0
    for path, text in settings.items():
        file.write_text(text)
        try:
            options = ["--config", str(file), "--data", str(tmp_path / "data"), "--out", "run"]
            config = parse_recipe(config_class, options).config
        except UserError as error:
            assert str(error).startswith(".".join(path)) or "no settings in YAML" in str(error)  # in the whole file
            refused += 1
        else:
            for key in path:
                config = getattr(config, key)
    assert refused > len(settings) / 3


@pytest.mark.parametrize("recipe", ["ptb_lstm", "wsj_sgcn", "cifar_cnn", "imagenet_resnet"])
def test_a_method_that_is_asked_for_by_name_has_its_own_settings_in_every_recipe(parse, recipe):
    config_class = load(f"recipes/{recipe}/train.py").Config
    for name, method in METHODS.items():
        level = {"noise": 0.1} if method.takes_noise else {}
        options = [word for key, value in level.items() for word in (f"--optim.{key}", str(value))]
        found = parse("--optim.method", name, *options, of=config_class).config.optim
        wanted = OptimConfig(method=name, **level)
        assert {key: getattr(found, key) for key in method.settings} == {k: getattr(wanted, k) for k in method.settings}
        assert found.betas == wanted.betas


def test_a_percentage_where_a_share_is_meant_gets_a_hint():
    for key, value, said in (("momentum", 90, "90 % is 0.9"), ("betas", (90, 99.9), "90, 99.9 % is 0.9, 0.999")):
        with pytest.raises(UserError, match=f"optim.{key}: .*{said}$"):
            OptimConfig(**{key: value})
    with pytest.raises(UserError, match=r"optim\.average_decay: 99 is .*; 99 % is 0\.99$"):
        OptimConfig(method="ema", average_decay=99)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "noise", "rho", "eta"])
def test_numbers_that_single_precision_does_not_have_are_refused(key):
    with pytest.raises(UserError, match=f"optim.{key}: 1e.300 is not "):
        OptimConfig(method="asam" if key in ("rho", "eta") else "graves", **{key: 1e300})


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UserError, match=r"training\.threads: 100000 is more than the \d+ cores"):
        setup(TrainingConfig(threads=100_000), 0)


@pytest.mark.parametrize("yaml, options, said", [
    ("optim: {method: ssgd, noise: 0.3}\nseed: 1\noptim: {lr: 0.01}\n", [], "optim is given twice, in lines 1 and 3"),
    ("optim:\n  lr: 1\n  method: none\n  lr: 2\n", [], "lr is given twice, in lines 2 and 4"),
    ("optim.lr: 0.5\noptim: {method: none}\n", [], "optim.lr is a key of optim, which is there, too"),
    ("optim: {method: none}\noptim.lr: 0.5\n", [], "optim.lr is a key of optim, which is there, too"),
    (None, ["--optim", "{lr: 1, lr: 2}"], "lr is given twice"), (None, ["--optim={lr: 1, lr: 2}"], "lr is given twice"),
])  # fmt: skip
def test_a_key_that_is_given_twice_is_refused_in_files_and_in_options(parse, yaml, options, said):
    with pytest.raises(UserError, match=said):
        parse(*options, yaml=yaml)


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int _", "!!float ''", "!!binary x", "!!set {a}", "[" * 200, "._",
                                   "!!python/object/apply:os.system [ls]", "!!omap [a: 1]", '"\\0"',
                                   "? [a]\n: b"])  # fmt: skip
@pytest.mark.parametrize("key", ["optim.lr", "optim.method", "model", "seed"])
def test_values_with_tags_of_yaml_are_refused_in_one_line(parse, key, value):
    with pytest.raises(UserError) as caught:
        parse(f"--{key}", value)
    assert str(caught.value).startswith(key) and len(str(caught.value).splitlines()) == 1


def test_a_key_that_is_given_twice_in_the_file_of_a_section_is_refused(parse, tmp_path):
    (tmp_path / "optim.yaml").write_text("lr: 0.5\nmethod: none\nlr: 2\n")
    with pytest.raises(UserError, match="lr is given twice, in lines 1 and 3"):
        parse("--optim", str(tmp_path / "optim.yaml"))
