"""Recorded networks against the same networks called as ever; what records here computes anew at each replay."""

import json
import weakref

import pytest
import torch
from programs import ROOT, generated_lines, load
from torch import nn

from seqssgd.data.text import write_text_dataset
from seqssgd.errors import UserError
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.models.transformer import TransformerLanguageModel
from seqssgd.optim import SinglePass, SymmetricNoise, noise_groups
from seqssgd.runs import checkpoints
from seqssgd.runs.directory import RunDirectory
from seqssgd.training import Task, TrainingConfig, fit
from seqssgd.training.graphs import Graphed, cuda_recorder

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def computing():
    """A recorder for machines without CUDA: what it computes anew it writes over all that it gave, as a replay does."""

    def record(compute):
        with torch.random.fork_rng([]):  # recording draws nothing
            results = compute()
        given, cast = [list(results)], (torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))

        def replay():
            with torch.enable_grad(), torch.autocast("cpu", cast[0], enabled=cast[1]):  # as it was then
                new = compute()
            for earlier in given:
                for mine, other in zip(earlier, new, strict=True):
                    if mine is not None:
                        mine.detach().copy_(other.detach())
            if isinstance(results, list):  # whose graph the backward computation needs
                given.append(list(new))
                results[:] = new

        return results, replay

    return record


def graphed(model, device, **settings):
    return Graphed(model, recorder=computing if device == "cpu" else cuda_recorder, **settings)


def twins(device, build=lambda: LSTMLanguageModel(30, 8)):
    torch.manual_seed(0)
    first, second = build().to(device), build().to(device)
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "build",
    [
        lambda: LSTMLanguageModel(30, 8),
        # on CUDA dropout between layers has states of its own: see below
        lambda: LSTMLanguageModel(30, 8, num_layers=1 if torch.cuda.is_available() else 2, dropout=0.3),
        lambda: TransformerLanguageModel(30, width=8, num_layers=1, heads=2, context=8),
    ],
    ids=["lstm", "dropout", "transformer"],
)
@pytest.mark.parametrize("signs", ["batch", "halves"])
def test_training_is_the_same(device, build, signs):
    plain, recorded = twins(device, build)
    replayed = graphed(recorded, device)
    networks = [(plain, plain), (recorded, replayed)]
    optimizers = [SymmetricNoise(torch.optim.SGD(noise_groups(m, 0.3), lr=0.1), signs=signs) for m, _ in networks]
    states, random = (
        [{}, {}],
        [torch.random.get_rng_state()] * 2 if device == "cpu" else [torch.cuda.get_rng_state()] * 2,
    )
    for step in range(14):
        minibatches = [
            torch.randint(30, (5 if step != 9 else 3, 6)).to(device) for _ in range(2)
        ]  # a last one is shorter
        for who, ((_, call), optimizer, kept) in enumerate(zip(networks, optimizers, states, strict=True)):
            module = torch.random if device == "cpu" else torch.cuda
            before = torch.random.get_rng_state()
            module.set_rng_state(random[who])
            for loop in [[tokens] for tokens in minibatches] if signs == "halves" else [minibatches]:
                for part in optimizer.passes():
                    for tokens in loop:
                        inputs = part.take(tokens, dim=1)
                        logits, state = call(inputs, kept.get(part.index))
                        kept[part.index] = tuple(s.detach() for s in state)
                        part.mean(logits.logsumexp(-1).mean(0)).backward()
                        del logits, state
            random[who] = module.get_rng_state()
            torch.random.set_rng_state(before)
            optimizer.step()
            optimizer.zero_grad()
    assert replayed._recorded
    for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(one, other)


class _Mixed(nn.Module):
    """A part in single precision within autocast, as normalisations have."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.last(x.float()).tanh()
        return self.first(x)


@pytest.mark.parametrize("device", DEVICES)
def test_training_in_autocast_is_the_same(device):
    plain, recorded = twins(device, _Mixed)
    replayed = graphed(recorded, device, autocast=torch.bfloat16)
    for _ in range(6):
        x = torch.randn(4, 6, device=device)
        for network, weights in ((plain, plain), (replayed, recorded)):
            with torch.autocast(device, torch.bfloat16):
                loss = network(x).float().square().sum()
            loss.backward()
            with torch.no_grad():
                for weight in weights.parameters():
                    weight -= 0.1 * weight.grad
                    weight.grad = None
    assert replayed._recorded
    for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_evaluation_and_new_shapes_are_computed_as_ever():
    model, _ = twins("cpu")
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    network = Graphed(model, recorder=lambda: lambda compute: (compute(), lambda: None), most=1)
    for length in (3, 3, 3, 3, 4, 4, 4, 4, 4):
        network(torch.zeros(length, 2, dtype=torch.long), None)
    assert len(network._recorded) == 1 and calls.count((4, 2)) == 5
    before = len(calls)
    model.eval()
    network(torch.zeros(3, 2, dtype=torch.long), None)
    assert len(calls) == before + 1


def test_what_was_returned_is_not_overwritten():
    model, _ = twins("cpu")
    network = graphed(model, "cpu", warm=0)
    first, _ = network(torch.zeros(3, 2, dtype=torch.long), None)
    kept = first.detach().clone()
    network(torch.ones(3, 2, dtype=torch.long), None)
    assert torch.equal(first, kept)


def test_backward_late_or_twice_is_an_error():
    model, _ = twins("cpu")
    network = graphed(model, "cpu", warm=0)
    first, _ = network(torch.zeros(3, 2, dtype=torch.long), None)
    second, _ = network(torch.zeros(3, 2, dtype=torch.long), None)
    with pytest.raises(RuntimeError, match="after the network was called again"):
        first.sum().backward()
    second.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="set training.graphs to false"):
        second.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_in_other_memory_are_an_error(frozen):
    model, _ = twins("cpu")
    model.output.weight.requires_grad_(not frozen)
    network = graphed(model, "cpu", warm=0)
    network(torch.zeros(3, 2, dtype=torch.long), None)
    model.output.weight.data = model.output.weight.data.clone()
    with pytest.raises(RuntimeError, match="in place"):
        network(torch.zeros(3, 2, dtype=torch.long), None)


@pytest.mark.parametrize("device", DEVICES)
def test_recording_moves_no_weights(device, monkeypatch):
    """An LSTM that meets other weights than its own gathers those it has in new memory, on a GPU."""
    model, _ = twins(device)
    moves, network = [], graphed(model, device, warm=0)
    monkeypatch.setattr(torch.nn.LSTM, "flatten_parameters", lambda self: moves.append(self))
    for _ in range(2):
        network(torch.zeros(3, 2, dtype=torch.long, device=device), None)[0].sum().backward()
        model.eval()
        model(torch.zeros(3, 2, dtype=torch.long, device=device), None)
        model.train()
    assert network._recorded and not moves


def test_hooks_see_each_gradient_once_and_may_keep_it():
    plain, recorded = twins("cpu")
    network, seen = graphed(recorded, "cpu", warm=1), [[], []]
    for model, kept in zip((plain, recorded), seen, strict=True):
        model.output.weight.register_hook(kept.append)
    for token in range(4):
        for call in (plain, network):
            call(torch.full((3, 2), token), None)[0].logsumexp(-1).sum().backward()
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_outputs_that_no_loss_uses_once_and_then_does():
    plain, recorded = twins("cpu")
    network = graphed(recorded, "cpu", warm=0)
    for used in (False, True, False):
        for call in (plain, network):
            logits, (hidden, _) = call(torch.zeros(3, 2, dtype=torch.long), None)
            (logits.sum() + (hidden.square().sum() if used else 0)).backward()
        for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


def test_inputs_of_another_type_are_recorded_apart():
    model, _ = twins("cpu")
    network = graphed(model, "cpu", warm=0)
    for dtype in (torch.int64, torch.int32):
        network(torch.zeros(3, 2, dtype=dtype), None)
    assert len(network._recorded) == 2


def test_frozen_weights_get_no_gradient_until_they_thaw():
    model, _ = twins("cpu")
    model.embedding.weight.requires_grad_(False)
    network = graphed(model, "cpu", warm=0)
    for _ in range(2):
        network(torch.zeros(3, 2, dtype=torch.long), None)[0].sum().backward()
    assert model.embedding.weight.grad is None and model.output.weight.grad is not None
    model.embedding.weight.requires_grad_()
    network(torch.zeros(3, 2, dtype=torch.long), None)[0].sum().backward()
    assert model.embedding.weight.grad is not None


class _Plain:
    """The least of a task."""

    steps_per_epoch, best = 1, None
    model = nn.Linear(1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_takes_a_gpu(tmp_path):
    task = _Plain()
    optimizer = SinglePass(torch.optim.SGD(task.model.parameters(), lr=0.1))
    with pytest.raises(UserError, match="training.graphs: it takes one process with a CUDA device"):
        fit(task, optimizer, [], TrainingConfig(graphs=True), RunDirectory(tmp_path / "run", {}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [
    [], ["--optim.method", "ssgd", "--optim.noise", "0.2"],
    ["--optim.method", "ssgd", "--optim.noise", "0.2", "--optim.signs", "halves"],
], ids=["sgd", "pair", "halves"])  # fmt: skip
def test_dropout_between_layers_goes_on_over_evaluations(tmp_path, options):
    """The last window of an epoch is shorter and recorded after some evaluations."""
    train = load("recipes/ptb_lstm/train.py")
    splits = {name: generated_lines(lines, 9, 0) for name, lines in {"train": 60, "valid": 12, "test": 12}.items()}
    write_text_dataset(tmp_path / "data", splits, "generated")
    common = [
        *("--config", str(ROOT / "recipes/ptb_lstm/small_cpu.yaml"), "--data", str(tmp_path / "data")),
        *("--training.epochs", "12", "--batch_size", "4", "--sequence_length", "8", "--model.dropout", "0.3"),
    ]
    found = {}
    for graphs in ("true", "false"):
        run = tmp_path / graphs
        assert not train.main([*common, *options, "--training.graphs", graphs, "--out", str(run)])
        found[graphs] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"]
    assert found["true"] == pytest.approx(found["false"], rel=0.05)  # other masks, the same training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_replay_draws_masks_of_its_own():
    network = graphed(LSTMLanguageModel(30, 8, dropout=0.5).cuda(), "cuda")
    tokens = torch.zeros(5, 4, dtype=torch.long, device="cuda")
    for _ in range(4):
        network(tokens, None)
    assert network._recorded
    first, second = (network(tokens, None)[0].detach() for _ in range(2))
    assert not torch.equal(first, second)


class _Halves(Task):
    """A network in two shapes, of which each is recorded at its own time; what became of its losses."""

    steps_per_epoch, best, replayable = 3, None, True

    def __init__(self, draws=False):
        self.model, self.losses, self.draws = nn.Linear(4, 2), [], draws

    def batches(self, epoch, start=0):
        return (torch.randn(6 if i < 2 else 4, 4) for i in range(start, 3))

    def loss(self, batch, part):
        loss = part.mean(self.model(part.take(batch)).square().sum(1))
        self.losses.append(weakref.ref(loss))
        return loss, len(batch)

    def evaluate(self):
        return {"valid_loss": torch.rand(()).item() if self.draws else 0.0}


@pytest.mark.parametrize("draws", [False, True])
def test_a_loop_keeps_to_what_recordings_ask_for(tmp_path, monkeypatch, draws):
    """No loss is alive while one is made; generators that were not drawn from are not set, or all is recorded anew."""
    task, alive, made, setting = _Halves(draws), [], [], []

    def recorder():
        alive.append(sum(loss() is not None for loss in task.losses))
        return computing()

    def recorded(loop):
        made.append(Graphed(loop.model, recorder=recorder))
        return made[-1]

    whole = checkpoints.set_rng_state

    def as_cuda(state, only_changed=False):
        changed = not torch.equal(state["torch"], torch.get_rng_state())
        whole(state, only_changed)
        setting.extend([changed] * only_changed)  # after an evaluation
        return changed and only_changed

    monkeypatch.setattr("seqssgd.training.loop._Loop.graphed", recorded)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(task.model, 0.3), lr=0.1), signs="halves")
    run = RunDirectory(tmp_path / "run", {})
    monkeypatch.setattr("seqssgd.runs.checkpoints.set_rng_state", as_cuda)
    warned = []
    monkeypatch.setattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", warned.append)
    fit(task, optimizer, [], TrainingConfig(epochs=8, graphs=True), run)
    assert warned == [False, True]
    assert setting and all(changed == draws for changed in setting)
    assert len(made) == (9 if draws else 1) and (draws or (len(made[0]._recorded) == 2 and alive == [0, 0]))
