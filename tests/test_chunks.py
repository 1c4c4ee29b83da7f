"""Long recordings in chunks against the same network on the whole recording."""

import itertools

import pytest
import torch

from seqssgd.models.sgcn import SimpleGatedConvNet
from seqssgd.speech.chunks import chunked_logits
from seqssgd.speech.decode import greedy

NETWORKS = [
    {"front_end": "stack", "subsampling": 3},
    {"front_end": "stack", "subsampling": 1, "lookahead": 0},
    {"front_end": "stack", "subsampling": 2, "lookahead": 1, "norm": "none"},
    *({"front_end": "conv2d", "subsampling": factor, "kernel": 3} for factor in (1, 2, 3, 4)),
]


def network(**options) -> SimpleGatedConvNet:
    """Two layers in double precision whose weights are large enough to show every dependence."""
    torch.manual_seed(1)
    model = SimpleGatedConvNet(6, 5, **{"width": 8, "layers": 2, "kernel": 5, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def whole(model):
    """A function from the features of one recording (T, F) to its logits (T', V)."""

    def run(features):
        with torch.no_grad():
            logits, lengths = model(features[None], torch.tensor([len(features)]))
        return logits[0, : lengths[0]]

    return run


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_the_receptive_field_is_what_the_gradient_reaches(options):
    model = network(**options)
    reached = []
    for seed in range(5):  # a rectifier may be shut where the edge of the field passes through it
        torch.manual_seed(seed)
        features = torch.randn(1, 120, 6, dtype=torch.float64, requires_grad=True)
        logits, _ = model(features, torch.tensor([120]))
        at = 60 // model.subsampling
        logits[0, at].square().sum().backward()
        reached += (features.grad[0].abs().sum(1).nonzero()[:, 0] - at * model.subsampling).tolist()
    assert (-min(reached), max(reached)) == model.receptive_field()


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_chunks_give_the_logits_and_the_text_of_the_whole_recording(options):
    model = network(**options)
    past, future = model.receptive_field()
    run = whole(model)
    for frames, chunk in itertools.product((1, 2, 47, 100, 101, 102, 103), (1, 7, 12, 50, 200)):
        features = torch.randn(frames, 6, dtype=torch.float64)
        expected = run(features)
        merged = chunked_logits(run, features, chunk, past, future, model.subsampling)
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-10)
        length = torch.tensor([len(expected)])
        assert greedy(merged[None], length) == greedy(expected[None], length)


@pytest.mark.parametrize("side", [0, 1])
def test_less_context_than_the_receptive_field_is_noticeable_on_either_side(side):
    model = network(subsampling=1)
    run, features = whole(model), torch.randn(100, 6, dtype=torch.float64)
    context = list(model.receptive_field())
    context[side] -= 1
    assert (chunked_logits(run, features, 20, *context) - run(features)).abs().max() > 1e-6


def test_no_chunk_is_longer_than_it_and_its_context():
    sizes = []

    def run(inputs):
        sizes.append(len(inputs))
        return inputs[::3]

    inputs = torch.arange(1000.0)[:, None]
    merged = chunked_logits(run, inputs, chunk=100, past=10, future=20, stride=3)
    assert torch.equal(merged, inputs[::3])
    assert max(sizes) == 102 + 12 + 20 and len(sizes) == 10  # rounded up to the stride


def test_samples_can_be_cut_into_windows_by_the_network():
    waveform = torch.randn(5003)
    window, hop = 400, 160

    def run(samples):  # one "logit" per window of samples that lies within them
        return (
            samples.unfold(0, window, hop).square().sum(1, keepdim=True)
            if len(samples) >= window
            else torch.zeros(0, 1)
        )

    for chunk in (160, 1000, 4000, 9000):
        merged = chunked_logits(run, waveform, chunk, past=0, future=window - 1, stride=hop)
        torch.testing.assert_close(merged, run(waveform))
    assert chunked_logits(run, waveform[:300], 160, 0, window - 1, hop).shape == (0, 1)


def test_an_empty_recording_has_no_logits():
    assert chunked_logits(lambda inputs: torch.zeros(len(inputs), 7), torch.zeros(0, 3), 10, 2, 2).shape == (0, 7)


def test_wrong_sizes_are_refused():
    inputs = torch.zeros(50, 3)
    for wrong in ({"chunk": 0}, {"past": -1}, {"future": -1}, {"stride": 0}):
        sizes = {"chunk": 10, "past": 1, "future": 1, "stride": 1, **wrong}
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            chunked_logits(lambda x: x, inputs, **sizes)
    with pytest.raises(ValueError, match="made 4 frames of what should give 10 or more; stride=1"):
        chunked_logits(lambda x: x[::3], inputs, 10, 0, 0, stride=1)
