"""GRU, Transformer and Conformer against their equations, and what they promise of windows and padding."""

import math

import pytest
import torch
import torch.nn.functional as F

from seqssgd.models.conformer import Conformer
from seqssgd.models.gru import GRULanguageModel
from seqssgd.models.transformer import TransformerLanguageModel, rotate

torch.set_num_threads(1)


def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * layer.weight + layer.bias


def turned(x: torch.Tensor, position: int) -> torch.Tensor:
    """One head's vector as D/2 complex numbers, each turned by its own angle."""
    half = len(x) // 2
    numbers = torch.complex(x[:half], x[half:])
    angles = torch.tensor([position * 10_000 ** (-i / half) for i in range(half)], dtype=x.dtype)
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag])


def attended(q: list, k: list, v: list, heads: int, sees) -> list[torch.Tensor]:
    """Attention one frame and one head at a time; ``sees(i, j)``: whether frame i looks at frame j."""
    out = []
    for i in range(len(q)):
        parts = []
        for query, keys, values in zip(
            q[i].chunk(heads), zip(*(x.chunk(heads) for x in k), strict=True),
            zip(*(x.chunk(heads) for x in v), strict=True), strict=True,
        ):  # fmt: skip
            seen = [j for j in range(len(k)) if sees(i, j)]
            scores = torch.stack([turned(query, i) @ turned(keys[j], j) / math.sqrt(len(query)) for j in seen])
            parts.append(sum(p * values[j] for p, j in zip(scores.softmax(0), seen, strict=True)))
        out.append(torch.cat(parts))
    return out


# ---- GRU -------------------------------------------------------------------------------------------------------------


def test_the_gru_computes_its_equations_and_carries_its_state():
    torch.manual_seed(0)
    model = GRULanguageModel(11, 6, 2, dropout=0.5, init_scale=0.5).eval()
    tokens = torch.randint(11, (7, 3))
    logits, _ = model(tokens)
    h, wanted = [torch.zeros(3, 6) for _ in range(2)], []
    for row in tokens:
        x = model.embedding.weight[row]
        for k in range(2):
            w, u, b, c = (getattr(model.gru, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            (r, z, n), (hr, hz, hn) = (x @ w.T + b).chunk(3, 1), (h[k] @ u.T + c).chunk(3, 1)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            x = h[k] = (1 - z) * (n + r * hn).tanh() + z * h[k]
        wanted.append(x @ model.output.weight.T + model.output.bias)
    torch.testing.assert_close(logits, torch.stack(wanted))
    first, state = model(tokens[:4], model.zero_state(3))
    torch.testing.assert_close(torch.cat([first, model(tokens[4:], state)[0]]), logits)


def test_tied_weights_are_one_parameter():
    assert GRULanguageModel(50, 4, 1, tied=True).output.weight.numel() == 200
    for tied, count in ((False, 2 * 200), (True, 200)):
        rnn = sum(p.numel() for p in torch.nn.GRU(4, 4).parameters())
        assert sum(p.numel() for p in GRULanguageModel(50, 4, 1, tied=tied).parameters()) == count + rnn + 50


# ---- Transformer -----------------------------------------------------------------------------------------------------


def transformer(**settings) -> TransformerLanguageModel:
    torch.manual_seed(0)
    model = TransformerLanguageModel(11, **{"width": 8, "num_layers": 2, "heads": 2, **settings}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than they start, or attention would be even
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


@pytest.mark.parametrize("context", [1, 3, 64])
def test_the_transformer_computes_its_equations_one_token_and_head_at_a_time(context):
    model = transformer(context=context)
    tokens = torch.randint(11, (6,))
    stream = [model.embedding.weight[token] for token in tokens]

    def rms(x: torch.Tensor, layer: torch.nn.RMSNorm) -> torch.Tensor:
        return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * layer.weight

    for block in model.blocks:
        y = [rms(x, block.attention_norm) for x in stream]
        q, k, v = ([layer.weight @ x for x in y] for layer in (block.query, block.key, block.value))
        seen = attended(q, k, v, 2, lambda i, j: 0 <= i - j < context)
        stream = [x + block.join.weight @ s for x, s in zip(stream, seen, strict=True)]
        stream = [x + block.down.weight @ F.gelu(block.up.weight @ rms(x, block.dense_norm)) for x in stream]
    wanted = torch.stack([model.embedding.weight @ rms(x, model.norm) for x in stream])
    torch.testing.assert_close(model(tokens[:, None])[0][:, 0], wanted)


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 7], [2, 9, 1]])
@pytest.mark.parametrize("context", [2, 4, 64])
def test_windows_of_any_length_give_the_logits_of_the_whole_text(context, cuts):
    model, tokens = transformer(context=context), torch.randint(11, (12, 3))
    state, found = None, []
    for part in tokens.split(cuts):
        logits, state = model(part, state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found), model(tokens)[0])
    assert state[0].shape == state[1].shape == (2, 3, min(12, context - 1), 8)


def test_a_token_depends_on_its_context_alone():
    model = transformer(context=3, num_layers=1)
    tokens = torch.randint(11, (9, 1))
    others = tokens.clone()
    others[5] = (tokens[5] + 1) % 11
    changed = (model(tokens)[0] != model(others)[0]).any(2).flatten().nonzero().flatten()
    assert changed.tolist() == [5, 6, 7]


def test_rotated_products_see_distances_alone():
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.double)
    one = (rotate(q, torch.tensor([3])) * rotate(k, torch.tensor([1]))).sum()
    other = (rotate(q, torch.tensor([102])) * rotate(k, torch.tensor([100]))).sum()
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # angles are float32
    torch.testing.assert_close(rotate(q, torch.tensor([3]))[0, 0], turned(q[0, 0], 3), rtol=1e-6, atol=1e-6)


def test_autocast_keeps_the_state_and_nearly_the_logits():
    model, tokens = transformer(context=8).float(), torch.randint(11, (12, 3))
    wanted, state = model(tokens)[0], None
    with torch.autocast("cpu", torch.bfloat16):
        first, state = model(tokens[:5], state)
        second, state = model(tokens[5:], tuple(s.float() for s in state))  # as a checkpoint might hold it
    found = torch.cat([first, second]).float()
    assert state[0].dtype == torch.bfloat16 and 0 < (found - wanted).norm() / wanted.norm() < 0.05


def test_the_first_perplexity_is_that_of_knowing_nothing_and_training_lowers_it():
    torch.manual_seed(0)
    model = TransformerLanguageModel(11, 16, 1, heads=2, dropout=0.1)
    tokens = torch.arange(44).remainder(11)[:, None]
    loss = F.cross_entropy(model(tokens[:-1])[0].flatten(0, 1), tokens[1:].flatten())
    assert loss.item() == pytest.approx(math.log(11), rel=0.02)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:-1])[0].flatten(0, 1), tokens[1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2  # each token tells the next


# ---- Conformer -------------------------------------------------------------------------------------------------------


def conformer(**settings) -> Conformer:
    torch.manual_seed(1)
    return Conformer(6, 5, **{"width": 8, "layers": 2, "heads": 2, "kernel": 3, **settings}).double().eval()


def test_the_conformer_computes_its_equations_one_frame_and_head_at_a_time():
    model = conformer(subsampling=1, reach=2)
    x = torch.randn(1, 7, 6, dtype=torch.double)
    logits, lengths = model(x, torch.tensor([7]))
    stream = list(model.input(model.front_end(x, torch.tensor([7]))[0])[0])
    for block in model.blocks:

        def dense(feed, x):
            return feed[4].weight @ F.silu(feed[1].weight @ norm(x, feed[0]) + feed[1].bias) + feed[4].bias

        stream = [x + dense(block.before, x) / 2 for x in stream]
        a, y = block.attention, [norm(x, block.attention.norm) for x in stream]
        q, k, v = ([layer.weight @ x + layer.bias for x in y] for layer in (a.query, a.key, a.value))
        seen = attended(q, k, v, 2, lambda i, j: abs(i - j) <= 2)
        stream = [x + a.join.weight @ s + a.join.bias for x, s in zip(stream, seen, strict=True)]
        c = block.convolution
        halves = [(c.gate.weight @ norm(x, c.norm) + c.gate.bias).chunk(2) for x in stream]
        gated = [value * gate.sigmoid() for value, gate in halves]
        for t in range(7):
            near = [(tap, t + tap - 1) for tap in range(3) if 0 <= t + tap - 1 < 7]
            y = F.silu(norm(sum(c.conv.weight[:, 0, tap] * gated[s] for tap, s in near), c.conv_norm))
            stream[t] = stream[t] + c.join.weight @ y + c.join.bias
        stream = [norm(x + dense(block.after, x) / 2, block.norm) for x in stream]
    assert lengths.tolist() == [7]
    torch.testing.assert_close(logits[0], torch.stack([model.output(x) for x in stream]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"reach": 2}, {"subsampling": 2, "kernel": 4}, {"subsampling": 1}], ids=str)
def test_an_utterance_gets_the_same_logits_however_long_its_minibatch_is(settings):
    model, lengths = conformer(**settings), torch.tensor([13, 24, 1, 18])
    features = torch.randn(4, 24, 6, dtype=torch.double)
    features[0, 13:] = float("nan")  # nothing beyond an utterance is looked at
    logits, out = model(features, lengths)
    for i, length in enumerate(lengths):
        alone, (frames,) = model(features[i : i + 1, :length], length[None])
        assert out[i] == frames == alone.shape[1] == -(-length // model.subsampling)
        torch.testing.assert_close(logits[i, :frames], alone[0], rtol=1e-6, atol=1e-8)


def test_padding_gives_no_gradient_and_no_number_that_is_none():
    model = conformer(reach=2, dropout=0.0).train()
    features = torch.randn(2, 24, 6, dtype=torch.double, requires_grad=True)
    logits, lengths = model(features, torch.tensor([24, 9]))
    sum(logits[i, :n].square().sum() for i, n in enumerate(lengths)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert features.grad[1, :9].any(1).all() and not features.grad[1, 9:].any()


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GRULanguageModel(0, 4, 1), "vocab_size must be at least 1"),
        (lambda: GRULanguageModel(9, 4, 1, dropout=1.0), "dropout must be in"),
        (lambda: GRULanguageModel(9, 4, 1, init_scale=0.0), "init_scale must be positive"),
        (lambda: TransformerLanguageModel(9, 6, 1, heads=2), "width=6 must be a multiple of twice the heads=2"),
        (lambda: TransformerLanguageModel(9, 8, 1, context=0), "context must be at least 1"),
        (lambda: TransformerLanguageModel(9, 8, 1, dropout=-0.1), "dropout must be in"),
        (lambda: Conformer(6, 5, width=6, heads=2), "width=6: it must be a multiple of twice the heads=2"),
        (lambda: Conformer(6, 5, reach=0), "reach=0: it must be at least 1"),
        (lambda: Conformer(6, 5, subsampling=5), "subsampling=5"),
        (lambda: Conformer(6, 5, dropout=1.0), "dropout=1.0: it must lie in"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
