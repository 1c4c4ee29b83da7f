"""Recorded networks against the same networks called as ever; what records here computes anew at each replay."""

import pytest
import torch
from torch import nn

from seqssgd.errors import UserError
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.models.transformer import TransformerLanguageModel
from seqssgd.optim import SymmetricNoise, noise_groups
from seqssgd.training.graphs import Graphed, cuda_recorder

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def computing():
    """A recorder for machines without CUDA."""

    def record(compute):
        results = compute()

        def replay():
            with torch.enable_grad():
                new = compute()
            if isinstance(results, list):
                results[:] = new
            else:
                for mine, other in zip(results, new, strict=True):
                    mine.copy_(other)

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
    [lambda: LSTMLanguageModel(30, 8), lambda: TransformerLanguageModel(30, width=8, num_layers=1, heads=2, context=8)],
    ids=["lstm", "transformer"],
)
@pytest.mark.parametrize("signs", ["batch", "halves"])
def test_training_is_the_same(device, build, signs):
    plain, recorded = twins(device, build)
    replayed = graphed(recorded, device)
    models = [(plain, plain), (recorded, replayed)]
    optimizers = [SymmetricNoise(torch.optim.SGD(noise_groups(m, 0.3), lr=0.1), signs=signs) for m, _ in models]
    states = [{}, {}]
    for step in range(14):
        tokens = torch.randint(30, (5 if step != 9 else 3, 6), device=device)  # a last, shorter window
        for (_, call), optimizer, kept in zip(models, optimizers, states, strict=True):
            for part in optimizer.passes():
                inputs = part.take(tokens, dim=1)
                logits, state = call(inputs, kept.get(part.index))
                kept[part.index] = tuple(s.detach() for s in state)
                part.mean(logits.logsumexp(-1).mean(0)).backward()
            optimizer.step()
            optimizer.zero_grad()
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


def test_a_second_call_before_backward_is_an_error():
    model, _ = twins("cpu")
    network = graphed(model, "cpu", warm=0)
    first, _ = network(torch.zeros(3, 2, dtype=torch.long), None)
    network(torch.zeros(3, 2, dtype=torch.long), None)
    with pytest.raises(RuntimeError, match="again before backward"):
        first.sum().backward()


def test_weights_in_other_memory_are_an_error():
    model, _ = twins("cpu")
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


def test_hooks_see_each_gradient_once():
    model, _ = twins("cpu")
    seen = []
    model.output.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    network = graphed(model, "cpu", warm=1)
    for _ in range(3):
        network(torch.zeros(3, 2, dtype=torch.long), None)[0].sum().backward()
    assert len(seen) == 3 and all(torch.equal(seen[0], gradient) for gradient in seen)


def test_frozen_weights_get_no_gradient():
    model, _ = twins("cpu")
    model.embedding.weight.requires_grad_(False)
    network = graphed(model, "cpu", warm=0)
    for _ in range(2):
        network(torch.zeros(3, 2, dtype=torch.long), None)[0].sum().backward()
    assert model.embedding.weight.grad is None and model.output.weight.grad is not None


class _Plain:
    """The least of a task."""

    steps_per_epoch, best = 1, None
    model = nn.Linear(1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_takes_a_gpu(tmp_path):
    from seqssgd.optim import SinglePass
    from seqssgd.runs.directory import RunDirectory
    from seqssgd.training import TrainingConfig, fit

    task = _Plain()
    optimizer = SinglePass(torch.optim.SGD(task.model.parameters(), lr=0.1))
    with pytest.raises(UserError, match="training.graphs: it takes one process with a CUDA device"):
        fit(task, optimizer, [], TrainingConfig(graphs=True), RunDirectory(tmp_path / "run", {}))
