"""Trained language models read back: perplexity and text against loops that go one token at a time."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from programs import ROOT, generated_lines, refused

from seqssgd import cli
from seqssgd.data.tokenizers import SentencePieceTokenizer, WordTokenizer
from seqssgd.devices import choose_device
from seqssgd.errors import UserError
from seqssgd.language.finished import load_language_model
from seqssgd.language.generation import generate
from seqssgd.language.scoring import perplexity
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.runs.checkpoints import find_checkpoint

MODEL = {"hidden_size": 6, "num_layers": 2, "dropout": 0.5, "init_scale": 0.8}
LINES = generated_lines(40)


def model_of(vocab_size: int, seed: int = 0, **settings) -> LSTMLanguageModel:
    torch.manual_seed(seed)
    return LSTMLanguageModel(vocab_size, **{**MODEL, **settings}).eval()


def make_run(folder: Path, tokenizer=None) -> Path:
    """A run directory as train.py leaves it: three checkpoints of three different models."""
    tokenizer = tokenizer or WordTokenizer.train(LINES, 12, False, "text")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    config = {"recipe": "ptb_lstm", "model": MODEL, "data": {"name": "text", "fingerprint": "f"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for seed, name in enumerate(("best", "step-99999999", "step-100000000")):
        state = {"model": model_of(tokenizer.vocab_size, seed).state_dict()}
        torch.save(state, folder / f"checkpoints/{name}.pt")
    return folder


@torch.no_grad()
def slow_log_probabilities(model: LSTMLanguageModel, ids: list[int]) -> torch.Tensor:
    """(len(ids), V): of the token that follows each, from a model that is shown one token at a time."""
    state, rows = model.zero_state(1), []
    for token in ids:
        logits, state = model(torch.tensor([[token]]), state)
        rows.append(logits[0, 0].double().log_softmax(0))
    return torch.stack(rows)


# ---- perplexity ------------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_one_token_at_a_time_whatever_the_window():
    model = model_of(9, init_scale=3)
    stream = torch.randint(9, (130,))
    rows = slow_log_probabilities(model, stream[:-1].tolist())
    expected = math.exp(-sum(rows[i, token].item() for i, token in enumerate(stream[1:])) / 129)
    assert abs(expected - 9) > 2  # an untrained model, but no uniform one
    for window in (1, 2, 43, 129, 130, 512):
        score = perplexity(model, stream, window=window)
        assert score.perplexity == pytest.approx(expected, rel=1e-6) and score.predictions == 129


def test_the_model_comes_back_in_its_mode_and_dropout_plays_no_part():
    model, stream = model_of(9), torch.randint(9, (20,))
    expected = perplexity(model, stream)
    model.train()
    assert perplexity(model, stream) == expected and model.training
    generate(model, WordTokenizer(["<eos>", *"abcdefgh"]), length=2)
    assert model.training
    assert perplexity(model.eval(), stream) == expected and not model.training


def test_perplexities_without_end_are_reported_and_too_short_texts_refused():
    model = model_of(3)
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor([0.0, 0.0, 2000.0]))
    assert perplexity(model, torch.zeros(4, dtype=torch.int64)).perplexity == math.inf
    assert perplexity(model, torch.tensor([0, 2])).predictions == 1
    with pytest.raises(UserError, match="1 token has nothing to predict"):
        perplexity(model, torch.tensor([0]))


# ---- writing text ----------------------------------------------------------------------------------------------------


@pytest.fixture
def words() -> WordTokenizer:
    return WordTokenizer(["<eos>", "<unk>", *"abcdefghij"])


def test_temperature_zero_takes_the_likeliest_token_each_time(words):
    model = model_of(words.vocab_size, init_scale=3, hidden_size=20)
    ids = [words.eos_id, *words.encode(["a b"]), words.ids["c"]]  # "c" begins the last line, which goes on
    start = len(ids)
    for _ in range(25):
        ids.append(int(slow_log_probabilities(model, ids)[-1].argmax()))
    assert generate(model, words, "a b\nc", 25, temperature=0) == words.decode(ids[1:])
    assert generate(model, words, "a b\nc", 25, temperature=1e-300, seed=3) == words.decode(ids[1:])
    assert len(set(ids[start:])) > 5


def test_a_seed_gives_one_text_and_leaves_the_global_generator_alone(words):
    model = model_of(words.vocab_size)
    before = torch.get_rng_state()
    texts = [generate(model, words, "a", 40, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert texts[0] == texts[1] != texts[2] and all(text.startswith("a ") for text in texts)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_come_as_often_as_the_model_says(words, temperature):
    model = model_of(words.vocab_size, init_scale=1.5)
    logits = slow_log_probabilities(model, [words.eos_id, words.ids["a"]])[-1]
    expected = (logits / temperature).softmax(0)
    counts, draws = torch.zeros(words.vocab_size), 800
    for seed in range(draws):
        text = generate(model, words, "a", 1, temperature, seed)
        counts[words.eos_id if text.endswith("\n") else words.ids[text.split()[-1]]] += 1
    deviation = (draws * expected * (1 - expected)).sqrt()
    assert ((counts - draws * expected).abs() < 5 * deviation + 1).all()


def test_a_prompt_may_be_empty_and_goes_on_within_its_line():
    tokenizer = SentencePieceTokenizer.train(LINES, 30, False, "text")
    model = model_of(tokenizer.vocab_size)
    assert generate(model, tokenizer, LINES[0], 20).startswith(LINES[0])
    assert generate(model, tokenizer, "", 5, seed=1) != generate(model, tokenizer, LINES[0], 5, seed=1)


def test_impossible_wishes_are_refused(words):
    model = model_of(words.vocab_size)
    with pytest.raises(UserError, match="length=0"):
        generate(model, words, length=0)
    for temperature in (-1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="temperature="):
            generate(model, words, temperature=temperature)
    with pytest.raises(UserError, match="the prompt, line 1: the word 'zebra'"):
        generate(model, WordTokenizer(["<eos>", *"abcdefghijk"]), "a zebra")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_best_last_and_a_file_are_the_checkpoints_they_say(tmp_path):
    run = make_run(tmp_path / "run")
    elsewhere = tmp_path / "copy.pt"
    elsewhere.write_bytes((run / "checkpoints/step-99999999.pt").read_bytes())
    for seed, name in enumerate(("best", elsewhere, "last")):  # "last" by number: as text, 9… comes after 1…
        model, tokenizer = load_language_model(run, name)
        assert torch.equal(model.output.weight, model_of(12, seed).output.weight) and not model.training
        assert tokenizer.vocab_size == 12
    (run / "checkpoints/.step-200000000.pt.x1.tmp").write_bytes(b"half")  # what a run is about to rename
    assert find_checkpoint(run, "last").name == "step-100000000.pt"
    (run / "checkpoints/best.pt").unlink()
    assert find_checkpoint(run).name == "step-100000000.pt"


def test_what_is_no_checkpoint_of_the_run_is_refused_and_named(tmp_path):
    run = make_run(tmp_path / "run")
    best, content = run / "checkpoints/best.pt", (run / "checkpoints/best.pt").read_bytes()
    tensor = content.index(model_of(12).output.weight.detach().numpy().tobytes()) + 5
    flipped = content[:tensor] + bytes([content[tensor] ^ 1]) + content[tensor + 1 :]
    for damaged in (b"", content[:100], content[:-100], flipped, b"not a checkpoint"):
        best.write_bytes(damaged)
        with pytest.raises(UserError, match=r"best\.pt: damaged checkpoint, or none"):
            load_language_model(run)
    for other, reason in (
        ({"model": model_of(13).state_dict()}, r"weights of another model \(size mismatch for embedding"),
        ({"model": torch.nn.Linear(2, 2).state_dict()}, "weights of another model"),
        ({"model": 3}, "weights of another model"),
        (model_of(12).state_dict(), "no checkpoint of a run"),
        (torch.ones(3), "damaged checkpoint, or none"),
    ):
        torch.save(other, best)
        with pytest.raises(UserError, match=rf"best\.pt: {reason}"):
            load_language_model(run)
    with pytest.raises(UserError, match="absent.pt is not a file"):
        load_language_model(run, tmp_path / "absent.pt")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    for name in ("best", "last"):
        with pytest.raises(UserError, match="checkpoints holds no .*train first"):
            load_language_model(run, name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not a run directory"),
        ("{", r"config.yaml: no settings in YAML \(.*, line 1\); put the run's own back"),
        ("model: 3", r"does not say which recipe reads the run; see about\["),
        ("model: {hidden_size: 3}", "does not say which recipe"),
        ("{model: {hidden_size: 0, num_layers: 1}, sequence_length: 5}", "hidden_size must be at least 1"),
    ],
)
def test_a_folder_that_is_no_run_of_a_language_model_is_refused(tmp_path, content, reason):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    if content is not None:
        (run / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=reason):
        load_language_model(run)


def test_devices_that_are_not_there_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("abacus", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f"the device {name} cannot be used here .*try cpu"):
            choose_device(name)


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_the_command_perplexity_scores_files(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    model, tokenizer = load_language_model(run)
    for name, lines in {"a.txt": LINES[:5], "b.txt": [LINES[0], "", "quite unknown words"]}.items():
        (tmp_path / name).write_text("\n".join(lines))
    assert cli.main(["perplexity", "--run", str(run), *(str(tmp_path / name) for name in ("a.txt", "b.txt"))]) == 0
    said = capsys.readouterr().out.splitlines()
    for line, name in zip(said, ("a.txt", "b.txt"), strict=True):
        stream = tokenizer.encode((tmp_path / name).read_text().split("\n"))
        unknown = (stream == tokenizer.unk_id).sum()
        assert line == (
            f"{tmp_path / name}: perplexity {perplexity(model, stream).perplexity:.3f}, {len(stream)} tokens with "
            f"<eos> ({unknown} unknown), {len(stream) - 1} predictions"
        )
    assert unknown >= 3


def test_the_command_generate_writes_one_text_per_seed(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    model, tokenizer = load_language_model(run, "last")
    options = ["--checkpoint", "last", "--prompt", "ba ba", "--length", "9", "--temperature", "0.7", "--seed", "4"]
    assert cli.main(["generate", "--run", str(run), *options]) == 0
    first, second = (generate(model, tokenizer, "ba ba", 9, 0.7, seed) for seed in (4, 5))
    assert capsys.readouterr().out == f"{first}\n"
    assert cli.main(["generate", "--run", str(run), *options, "--count", "2"]) == 0
    assert capsys.readouterr().out == f"--- seed 4\n{first}\n--- seed 5\n{second}\n"


def test_the_commands_refuse_in_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", WordTokenizer.train(LINES, None, False, "text"))
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "words.txt").write_text("ba\nba zebra\n")
    (tmp_path / "good.txt").write_text("ba\n")
    for arguments, reason in (
        (["perplexity", tmp_path / "good.txt", tmp_path / "latin1.txt"], "latin1.txt is not UTF-8 text"),
        (["perplexity", tmp_path / "words.txt"], "words.txt, line 2: the word 'zebra' is not in the vocabulary"),
        (["perplexity", tmp_path / "absent.txt"], "absent.txt cannot be read"),
        (["perplexity", "--device", "abacus", tmp_path / "good.txt"], "the device abacus cannot be used here"),
        (["perplexity", "--checkpoint", tmp_path / "good.txt", tmp_path / "good.txt"], "damaged checkpoint, or none"),
        (["generate", "--count", "0"], "--count 0"),
        (["generate", "--seed", "9" * 23], f"--seed: {'9' * 23} is not a whole number from 0 to 9223372036854775807"),
        (["generate", "--seed", "-1"], "--seed: -1 is not a whole number from 0 to 9223372036854775807"),
        (["generate", "--seed", str(2**63 - 1), "--count", "2"], f"--seed: {2**63} is not a whole number"),
        (["generate", "--prompt", "zebra"], "the prompt, line 1: the word 'zebra'"),
    ):
        command = [arguments[0], "--run", run, *arguments[1:]]
        assert reason in refused(capsys, cli.main, *command)
    assert "is not a run directory" in refused(capsys, cli.main, "generate", "--run", tmp_path)


def test_the_help_does_not_wait_for_torch():
    code = "import sys; from seqssgd import cli; sys.argv = ['seqssgd', '--help']\ntry: cli.main()\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "perplexity" in done.stdout and "generate" in done.stdout, done.stderr
