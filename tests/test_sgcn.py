"""The Simple Gated ConvNet against its equations, and the promise that padding changes nothing."""

import pytest
import torch

from seqssgd.models.sgcn import SIZES, SimpleGatedConvNet

VARIANTS = [
    {},
    {"gate": "self", "norm": "none"},
    {"gate": "lowrank", "residual": False},
    {"front_end": "conv2d", "subsampling": 2},
    {"front_end": "conv2d", "subsampling": 4, "lookahead": 1},
    {"lookahead": 0, "kernel": 4, "subsampling": 1},
    {"subsampling": 4, "kernel": 6},
]


def small(**settings) -> SimpleGatedConvNet:
    return SimpleGatedConvNet(8, 5, **{"width": 9, "layers": 3, "kernel": 5, **settings}).eval()


@pytest.mark.parametrize(
    "name, count",
    [("12x190", 926_001), ("12x300", 2_187_811), ("12x190-conv2d", 1_088_039), ("12x300-conv2d", 2_240_399)],
)
def test_parameters_are_as_many_as_stated(name, count):
    assert sum(p.numel() for p in SimpleGatedConvNet(80, 31, **SIZES[name]).parameters()) == count


def test_a_block_computes_the_gated_linear_unit_and_the_convolution_frame_by_frame():
    model = small(layers=2, subsampling=2)
    x = torch.randn(1, 7, 8)
    logits, lengths = model(x, torch.tensor([7]))
    h = [torch.cat([x[0, 2 * t], x[0, 2 * t + 1] if 2 * t + 1 < 7 else torch.zeros(8)]) for t in range(4)]
    for block in model.blocks:
        gated = []
        for frame in h:
            mean, variance = frame.mean(), frame.var(correction=0)
            u = (frame - mean) / (variance + 1e-5).sqrt() * block.norm.weight + block.norm.bias
            z = block.gate.linear.weight @ u + block.gate.linear.bias
            gated.append(z[:9] * torch.sigmoid(z[9:]))
        out = []
        for t in range(4):
            near = [(k, t + k - 2) for k in range(5) if 0 <= t + k - 2 < 4]
            out.append(sum(block.conv.weight[:, 0, k] * gated[s] for k, s in near))
        h = [a + b if len(a) == len(b) else b for a, b in zip(h, out, strict=True)]
    expected = torch.stack([model.output(model.norm(frame)) for frame in h])
    assert lengths.tolist() == [4]
    torch.testing.assert_close(logits[0], expected)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_an_utterance_gets_the_same_logits_however_long_its_minibatch_is(settings):
    model, lengths = small(**settings), torch.tensor([13, 24, 1, 18])
    features = torch.randn(4, 24, 8)
    features[0, 13:] = float("nan")  # nothing beyond an utterance is looked at
    logits, out = model(features, lengths)
    for i, length in enumerate(lengths):
        alone, (frames,) = model(features[i : i + 1, :length], length[None])
        assert out[i] == frames == alone.shape[1] == -(-length // model.subsampling)
        torch.testing.assert_close(logits[i, :frames], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lookahead", [0, 1, None])
def test_a_frame_sees_as_much_of_the_future_as_it_may(lookahead):
    model = small(subsampling=1, lookahead=lookahead, layers=3, kernel=5)
    x = torch.randn(1, 40, 8, requires_grad=True)
    logits, _ = model(x, torch.tensor([40]))
    logits[0, 20].sum().backward()
    seen = x.grad[0].abs().sum(1).nonzero().flatten()
    ahead = 2 if lookahead is None else lookahead
    assert (seen.min(), seen.max()) == (20 - 3 * (4 - ahead), 20 + 3 * ahead)


def test_frames_that_are_subsampled_still_all_count():
    for settings in ({"front_end": "conv2d"}, {"front_end": "stack"}):
        model = small(subsampling=3, **settings)
        x = torch.randn(1, 12, 8, requires_grad=True)
        model(x, torch.tensor([12]))[0].sum().backward()
        assert (x.grad[0, :11].abs().sum(1) > 0).all()  # a stride may step over the very last one


@pytest.mark.parametrize(
    "bad",
    [{"width": 0}, {"gate": "glue"}, {"norm": "batch"}, {"front_end": "rnn"}, {"dropout": 1.0}, {"lookahead": -1}]
    + [{"lookahead": 5}, {"subsampling": 5, "front_end": "conv2d"}],
    ids=str,
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        small(**bad)
