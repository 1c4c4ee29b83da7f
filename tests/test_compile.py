"""Moving weights in place is invisible to whatever holds on to them: compiled graphs, cuDNN's lists, flat buffers."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups
from seqssgd.optim.noise import DISTRIBUTIONS, GRANULARITIES
from seqssgd.optim.schedules import phases


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(36, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1))


def build(model_class=Convolutional, noise=0.5, **options):
    torch.manual_seed(3)
    model = model_class()
    return model, SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=noise), lr=0.01), **options)


def step(model, optimizer, x):
    """One step; the gradients that it was made with."""
    for _ in optimizer.passes():
        model(x).square().mean().backward()
    gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
    optimizer.step()
    optimizer.zero_grad()
    return gradients


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_compiled_model_is_compiled_once_and_has_the_gradients_of_the_uncompiled_one():
    torch._dynamo.reset()
    counters.clear()
    model, optimizer = build()
    plain, reference = build()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    schedules = [LambdaNoise(o, phases("2S-2-2S")) for o in (optimizer, reference)]  # one pass and two
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(6):
            for ours, expected in zip(step(compiled, optimizer, IMAGES), step(plain, reference, IMAGES), strict=True):
                torch.testing.assert_close(ours, expected)
            for schedule in schedules:
                schedule.step()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["recompiles"]
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, as it compiles Adam's step
@pytest.mark.parametrize("known", [False, True])
def test_a_step_compiled_as_a_whole_is_the_step(known):
    torch._dynamo.reset()
    model, optimizer = build()
    plain, reference = build()
    if known:  # which hangs guards on the model
        model, optimizer = build()
        optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.5), lr=0.01), model=model)

    def whole():
        for _ in optimizer.passes():
            model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(whole, backend="aot_eager")
    for _ in range(4):
        compiled()
        step(plain, reference, IMAGES)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_an_lstm_keeps_its_parameters_their_addresses_and_its_list_of_them():
    model, optimizer = build(Recurrent)
    rnn = model.rnn
    flat, addresses = list(rnn._flat_weights), [p.data_ptr() for p in model.parameters()]
    clean = bits(rnn)
    for _ in range(3):
        for _ in optimizer.passes():
            assert all(
                p is getattr(rnn, name) for name, p in zip(rnn._flat_weights_names, rnn._flat_weights, strict=True)
            )
            assert not same(bits(rnn), clean)
            fresh = Recurrent()  # what the weights of this moment give in a network that knows no others
            fresh.load_state_dict(model.state_dict())
            output = model(SEQUENCES)
            assert torch.equal(output, fresh(SEQUENCES))
            output.square().mean().backward()
        optimizer.step()
        clean = bits(rnn)
    assert all(p is q for p, q in zip(rnn._flat_weights, flat, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_weights_that_are_views_of_one_flat_buffer_stay_so():
    model, optimizer = build()
    separate, reference = build()
    buffer = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(buffer, model.parameters())  # every weight is now a reshaped piece of the buffer
    first = model.conv.weight
    assert first.data_ptr() == buffer.data_ptr()
    for _ in range(3):
        for _ in optimizer.passes():
            assert torch.equal(first.flatten(), buffer[: first.numel()])
            model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        step(separate, reference, IMAGES)
    assert torch.equal(buffer, nn.utils.parameters_to_vector(separate.parameters()))


def test_a_channels_last_model_stays_channels_last_and_trains_as_the_plain_one():
    model, optimizer = build()
    plain, reference = build()
    model.to(memory_format=torch.channels_last)
    weight = model.conv.weight
    address, stride = weight.data_ptr(), weight.stride()
    assert not weight.is_contiguous()
    for _ in range(4):
        step(model, optimizer, IMAGES.to(memory_format=torch.channels_last))
        step(plain, reference, IMAGES)
        assert (weight.data_ptr(), weight.stride()) == (address, stride)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)  # which also fills fresh memory with nan
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_suffice_and_change_nothing(deterministic):
    for distribution, granularity in itertools.product(DISTRIBUTIONS, GRANULARITIES):
        results = []
        for strict in (True, True, False):
            torch.use_deterministic_algorithms(strict)
            model, optimizer = build(Recurrent, distribution=distribution, granularity=granularity)
            for _ in range(2):
                step(model, optimizer, SEQUENCES)
            results.append(bits(model))
        assert same(results[0], results[1]) and same(results[0], results[2]), (distribution, granularity)


def test_the_noise_does_not_depend_on_the_number_of_threads():
    wide = [nn.Parameter(torch.randn(300, 401)), nn.Parameter(torch.randn(65_537))]  # large enough to be shared out
    for distribution in DISTRIBUTIONS:
        points = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            weights = copy.deepcopy(wide)
            group = {"params": weights, "noise": 0.5}
            optimizer = SymmetricNoise(torch.optim.SGD([group], lr=0.1), distribution=distribution)
            for _ in optimizer.passes():
                points.append([p.detach().clone() for p in weights])
        for a, b in zip(points[0] + points[1], points[2] + points[3], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the sums of the norms may differ in a last bit


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, as it compiles SGD's step
@pytest.mark.parametrize("signs", ["batch", "halves"])
def test_a_whole_step_that_is_compiled_is_that_of_the_bare_loop(signs):
    """The loop over passes stays Python; what is in it becomes graphs, once."""

    def step(model, optimizer, x):
        for part in optimizer.passes():
            loss = model(part.take(x)).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    start, found = copy.deepcopy(model.state_dict()), []
    for train in (step, torch.compile(step, backend="eager")):
        model.load_state_dict(start)
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.3), lr=0.1), signs=signs)
        for _ in range(3):
            train(model, optimizer, torch.ones(6, 4))
        found.append(copy.deepcopy(model.state_dict()))
    assert not torch.equal(start["0.weight"], found[0]["0.weight"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)
