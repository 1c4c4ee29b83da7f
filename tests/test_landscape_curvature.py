"""Hessian and Gauss-Newton products against matrices that are written out, and what is estimated from them."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seqssgd.landscape import (
    CurvatureOperator,
    Objective,
    ctc_loss,
    layer_traces,
    spectral_density,
    top_eigenvalues,
    trace,
)
from seqssgd.landscape.curvature import _nodes
from seqssgd.landscape.fast import FastTwice
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.models.sgcn import SimpleGatedConvNet
from seqssgd.speech import recognizer

# ---- the loss of CTC -------------------------------------------------------------------------------------------------


def slow_ctc(logits, lengths, targets, target_lengths):
    """Graves et al.'s forward recursion, one state at a time, in operations that torch differentiates as it likes."""
    losses = []
    for row, length, labels in zip(logits.log_softmax(-1), lengths.tolist(), targets.tolist(), strict=True):
        spelled = [0]
        for label in labels[: target_lengths[len(losses)]]:
            spelled += [label, 0]
        alpha = [row[0, spelled[s]] if s < 2 else row.new_tensor(-1e30) for s in range(len(spelled))]
        for t in range(1, length):
            before, alpha = alpha, []
            for s, label in enumerate(spelled):
                ways = before[max(s - 1, 0) : s + 1]
                if s > 1 and label and label != spelled[s - 2]:
                    ways = [*ways, before[s - 2]]
                alpha.append(torch.stack(ways).logsumexp(0) + row[t, label])
        losses.append(-torch.stack(alpha[-2:]).logsumexp(0))
    return torch.stack(losses)


LENGTHS, TARGET_LENGTHS = torch.tensor([7, 5, 6, 3, 3]), torch.tensor([3, 2, 1, 0, 2])
TARGETS = torch.tensor([[1, 1, 2], [3, 2, 9], [4, 9, 9], [9, 9, 9], [2, 2, 9]])  # 9: beyond the length
UTTERANCES = (LENGTHS, TARGETS.clamp_max(4), TARGET_LENGTHS)


def test_ctc_agrees_with_the_slow_recursion_to_the_second_derivative_and_with_torch_in_value():
    logits = torch.randn(5, 7, 5, dtype=torch.double, requires_grad=True)
    weights, vector = torch.rand(5, dtype=torch.double), torch.randn_like(logits)
    found = []
    for loss in (ctc_loss, slow_ctc):
        losses = loss(logits, *UTTERANCES)
        (gradient,) = torch.autograd.grad((losses * weights).sum(), logits, create_graph=True)
        (product,) = torch.autograd.grad(gradient, logits, vector)
        found.append((losses, gradient, product))
    for mine, slow in zip(*found, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][0].float(), recognizer.ctc_loss(logits, *UTTERANCES), rtol=1e-6, atol=1e-6)
    assert found[0][2].abs().max() > 0.1


def test_ctc_of_too_few_frames_is_infinite_and_of_the_others_as_alone():
    logits = torch.randn(5, 7, 5)
    lengths = LENGTHS.clone()
    lengths[0] = 3  # 1 1 2 needs four
    torch.testing.assert_close(
        ctc_loss(logits, lengths, *UTTERANCES[1:]), recognizer.ctc_loss(logits, lengths, *UTTERANCES[1:])
    )
    assert ctc_loss(logits, lengths, *UTTERANCES[1:]).isinf().tolist() == [True, False, False, False, False]


def test_ctc_has_no_third_derivative_and_says_so():
    logits = torch.randn(5, 7, 5, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(ctc_loss(logits, *UTTERANCES).sum(), logits, create_graph=True)
    (product,) = torch.autograd.grad(gradient.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        product.square().sum().backward()


# ---- products --------------------------------------------------------------------------------------------------------


def images(count):
    return torch.randn(count, 3, 6, 6, dtype=torch.double), torch.arange(count) % 3


class Cnn(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )


def classification(model, sizes, make=images):
    model.double().train()
    batches = [make(size) for size in sizes]
    return Objective(model, batches, lambda b: model(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


def rows(count):
    return torch.randn(count, 5, dtype=torch.double), torch.arange(count) % 3


def smooth(sizes=(7, 3)):
    return classification(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), sizes, rows)


def language(sizes=(3, 2)):
    model = LSTMLanguageModel(7, 4, 2, init_scale=0.7)

    def make(count):
        tokens = torch.randint(7, (6, count))
        return tokens[:-1], tokens[1:]

    model.double().train()
    return Objective(
        model,
        [make(size) for size in sizes],
        lambda b: model(b[0])[0].flatten(0, 1),
        lambda z, b: F.cross_entropy(z, b[1].flatten(), reduction="none"),
    )


def speech(loss=ctc_loss, front_end="stack"):
    model = SimpleGatedConvNet(6, 5, 4, 2, 3, front_end=front_end, subsampling=2).double()
    batch = (torch.randn(5, 14, 6, dtype=torch.double), 2 * LENGTHS, *UTTERANCES[1:])
    return Objective(
        model, [batch], lambda b: model(*b[:2])[0], lambda z, b: loss(z, -(-b[1] // 2), *b[2:]) / (b[3] + 1)
    )


def mean_loss(objective, flat):
    """L as a function of all weights in one vector: outputs of all batches by functional_call, one loss after all."""
    named = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
    pieces = flat.split([p.numel() for p in named.values()])
    weights = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
    terms = []
    for batch in objective.batches:
        with torch.nn.utils.stateless._reparametrize_module(objective.model, weights):
            terms.append(objective.losses(objective.outputs(batch), batch).flatten())
    return torch.cat(terms).mean()


def dense(objective):
    flat = torch.cat([p.detach().flatten() for p in objective.params])
    objective.model.eval()
    matrix = torch.autograd.functional.hessian(lambda w: mean_loss(objective, w), flat)
    objective.model.train()
    return matrix


OBJECTIVES = {"smooth": smooth, "cnn": lambda: classification(Cnn(), (7, 3)), "lstm": language, "speech": speech}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_products_eigenvalues_and_traces_are_those_of_the_matrix_written_out(name, kept):
    objective = OBJECTIVES[name]()
    wanted = dense(objective)
    state = {key: value.clone() for key, value in objective.model.state_dict().items()}
    operator = CurvatureOperator(objective, keep_graph=kept)
    assert operator.method == "exact" and operator.reason is None
    vectors = torch.randn(operator.size, 3, dtype=torch.double)
    for vector in vectors.T:
        torch.testing.assert_close(operator.matvec(vector), wanted @ vector, rtol=1e-8, atol=1e-11)
    eigenvalues = torch.linalg.eigvalsh(wanted).numpy()[::-1]
    found = top_eigenvalues(operator, 3, tolerance=1e-6).values
    np.testing.assert_allclose(found, eigenvalues[:3], rtol=1e-4)
    assert operator.products > 3
    estimate = trace(operator, 120)
    assert estimate.low - 1e-9 <= wanted.trace() <= estimate.high + 1e-9
    assert estimate.high - estimate.low < 0.5 * wanted.trace().abs()
    # nothing is left behind: mode, statistics, weights, gradients
    assert objective.model.training and all(p.grad is None for p in objective.params)
    assert all(torch.equal(value, state[key]) for key, value in objective.model.state_dict().items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_loss_in_the_outputs(name):
    objective = OBJECTIVES[name]()
    operator = CurvatureOperator(objective, kind="gauss_newton", keep_graph=name == "cnn")
    wanted = torch.zeros(operator.size, operator.size, dtype=torch.double)
    with objective.frozen():
        for batch in objective.batches:
            outputs = objective.outputs(batch)
            jacobian = [
                torch.cat([g.flatten() for g in torch.autograd.grad(z, objective.params, retain_graph=True)])
                for z in outputs.flatten()
            ]
            inner = torch.autograd.functional.hessian(
                lambda z, batch=batch: objective.losses(z, batch).sum(), outputs.detach()
            )
            inner = inner.reshape(outputs.numel(), outputs.numel())
            wanted += torch.stack(jacobian).T @ inner @ torch.stack(jacobian) / objective.terms
    for _ in range(2):
        vector = torch.randn(operator.size, dtype=torch.double)
        torch.testing.assert_close(operator.matvec(vector), wanted @ vector, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("build, shape", [
    (lambda: nn.Conv1d(6, 6, 5, groups=6, padding=2), (2, 6, 9)),
    (lambda: nn.Conv1d(6, 4, 4, stride=2, dilation=2, bias=False), (2, 6, 12)),
    (lambda: nn.Conv2d(6, 6, (3, 2), groups=6, padding=(1, 0)), (2, 6, 5, 4)),
    (lambda: nn.Conv2d(6, 4, 3, groups=2, stride=(2, 1), padding=1), (2, 6, 7, 6)),
    (lambda: nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    (lambda: nn.GLU(1), (2, 6, 5)),
    (lambda: nn.GLU(), (3, 6)),
    (lambda: nn.LayerNorm(5), (3, 4, 5)),
    (lambda: nn.LayerNorm(5, elementwise_affine=False), (4, 5)),
    (lambda: known_statistics(nn.BatchNorm2d(3)), (4, 3, 2, 5)),
    (lambda: known_statistics(nn.BatchNorm1d(3)), (4, 3)),
    (lambda: known_statistics(nn.BatchNorm1d(3, affine=False)), (4, 3, 2)),
])  # fmt: skip
def test_what_is_fast_and_its_first_and_second_derivatives_are_torchs(build, shape):
    layer, x = build().double(), torch.randn(shape, dtype=torch.double, requires_grad=True)
    for p in layer.parameters():
        nn.init.normal_(p)
    inputs = [x, *layer.parameters()]
    vectors = [torch.randn_like(t) for t in inputs]
    found = []
    for mode in (FastTwice(), nullcontext()):
        with mode:
            y = layer(x)
        gradients = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        again = partial(torch.autograd.grad, retain_graph=True, allow_unused=True)
        products = [again(gradients, inputs, vectors) for _ in range(2)]  # what the first has kept serves the second
        alone = [again(gradient, inputs, vector) for gradient, vector in zip(gradients, vectors, strict=True)]
        found.append([y, *gradients, *(t for part in (*products, *alone) for t in part)])
        mine = any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in _nodes([y]))
        assert mine == isinstance(mode, FastTwice)
    for mine, torchs in zip(*found, strict=True):
        assert (mine is None or not mine.any()) if torchs is None else mine is not None
        if torchs is not None:
            torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-10)


def known_statistics(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv1d(6, 12, 3, groups=6, padding="same"), (2, 6, 9)),
    (nn.Conv1d(6, 4, 3), (6, 9)),
    (nn.ConvTranspose1d(6, 4, 3), (2, 6, 9)),
    (nn.LayerNorm((6, 9)), (2, 6, 9)),
    (nn.BatchNorm1d(6, momentum=0.0), (2, 6, 9)),
])  # fmt: skip
def test_others_are_left_to_torch(layer, shape):
    x = torch.randn(shape)
    with FastTwice():
        found = layer(x)
    assert torch.equal(found, layer(x))


def test_a_shorter_last_batch_weighs_less():
    whole = smooth((10,))
    inputs, labels = whole.batches[0]
    parts = whole.part([(inputs[:7], labels[:7]), (inputs[7:], labels[7:])])
    vector = torch.randn(sum(p.numel() for p in whole.params), dtype=torch.double)
    one, two = (CurvatureOperator(objective).matvec(vector) for objective in (whole, parts))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


def test_graphs_are_kept_where_they_fit(monkeypatch):
    objective = smooth((7, 3))
    vector = torch.randn(sum(p.numel() for p in objective.params), dtype=torch.double)
    kept = CurvatureOperator(objective)
    assert kept.keep_graph and "graphs kept" in repr(kept)
    inputs, hidden = 3 * 5, 3 * 6  # numbers of the smaller batch that the graph holds at least
    assert 8 * (inputs + hidden) < kept._probed_bytes < 100 * 8 * (inputs + hidden)
    monkeypatch.setattr("seqssgd.landscape.curvature.GRAPHS", 100)
    thrown = CurvatureOperator(objective)
    assert not thrown.keep_graph and not thrown._graphs
    products = [operator.matvec(vector) for operator in (kept, kept, thrown)]
    assert len(kept._graphs) == 2 and not thrown._graphs
    for other in products[1:]:
        torch.testing.assert_close(other, products[0], rtol=1e-12, atol=1e-14)


def test_what_the_recursions_of_ctc_hold_counts_as_memory_of_the_graph():
    from seqssgd.landscape.curvature import _held_bytes, _nodes

    logits = torch.randn(2, 9, 5, dtype=torch.double, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([9, 7]), torch.tensor([[1, 2, 3], [4, 1, 0]]), torch.tensor([3, 2])).sum()
    gradient = torch.autograd.grad(loss, logits, create_graph=True)
    held = sum(_held_bytes(_nodes(gradient)).values())
    states, frames, both = 7, 9, 4
    shares, occupancy = 3 * frames * both * states, frames * 2 * states
    assert 8 * (shares + occupancy) <= held < 3 * 8 * (shares + occupancy)


def test_a_layers_block_is_a_block_of_the_whole():
    objective = smooth()
    wanted = dense(objective)
    layer = [objective.params[2]]
    first = sum(p.numel() for p in objective.params[:2])
    block = wanted[first : first + layer[0].numel(), first : first + layer[0].numel()]
    vector = torch.randn(len(block), dtype=torch.double)
    torch.testing.assert_close(CurvatureOperator(objective, layer).matvec(vector), block @ vector)


# ---- differences, and networks that cannot be differentiated twice ---------------------------------------------------


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-7), (torch.float, 2e-2)])
def test_differences_serve_where_there_is_no_second_derivative_and_say_so(dtype, tolerance):
    class Net(nn.Module):
        def __init__(self, wave):
            super().__init__()
            self.first, self.last, self.wave = nn.Linear(5, 6), nn.Linear(6, 3), wave

        def forward(self, x):
            return self.last(self.wave(self.first(x)))

    objective = classification(Net(OnceOnly.apply), (9,), rows)
    objective.model.to(dtype)
    objective = objective.part([(x.to(dtype), y) for x, y in objective.batches])
    operator = CurvatureOperator(objective)
    assert operator.method == "differences" and "OnceOnly" in operator.reason
    assert "central differences of" in repr(operator)
    before = [p.clone() for p in objective.params]
    vector = 100 * torch.randn(operator.size, dtype=dtype)
    found = operator.matvec(vector)
    assert all(torch.equal(p, b) for p, b in zip(objective.params, before, strict=True))
    objective.model.wave = torch.sin
    exact = CurvatureOperator(objective, method="exact").matvec(vector)
    assert (found - exact).norm() < tolerance * exact.norm()
    assert not CurvatureOperator(objective, method="differences").matvec(torch.zeros_like(vector)).any()


def test_a_network_with_kinks_and_a_loss_that_is_differentiable_once_is_refused_by_name():
    objective = speech(recognizer.ctc_loss, "conv2d")
    with pytest.raises(RuntimeError, match=r"_ctc_loss_backward.*kinks \(Relu\).*seqssgd.landscape.ctc_loss"):
        CurvatureOperator(objective)
    stacked = CurvatureOperator(speech(recognizer.ctc_loss))
    assert stacked.method == "differences" and "_ctc_loss_backward" in stacked.reason
    with pytest.raises(RuntimeError, match="_ctc_loss_backward"):
        CurvatureOperator(speech(recognizer.ctc_loss), method="exact")
    with pytest.raises(RuntimeError, match="_ctc_loss_backward"):
        CurvatureOperator(speech(recognizer.ctc_loss), kind="gauss_newton")


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match="kind='fisher'"):
        CurvatureOperator(smooth(), kind="fisher")
    with pytest.raises(ValueError, match="method='fast'"):
        CurvatureOperator(smooth(), method="fast")
    with pytest.raises(ValueError, match="Gauss-Newton"):
        CurvatureOperator(smooth(), kind="gauss_newton", method="differences")
    with pytest.raises(ValueError, match="no loss terms"):
        smooth(())


# ---- what is estimated from products ---------------------------------------------------------------------------------


class Dense:
    def __init__(self, matrix):
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device

    def matvec(self, vector):
        return self.matrix @ vector


def random_matrix(size=60, highest=2.0, lowest=-8.0, negative=0.3):
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.double))[0]
    values = torch.logspace(highest, lowest, size, dtype=torch.double)
    values[::7] *= -negative
    return basis @ torch.diag(values) @ basis.T, values


def test_eigenvalues_are_the_largest_and_failing_to_converge_is_an_error():
    matrix, values = random_matrix()
    found = top_eigenvalues(Dense(matrix), 4, 1e-8)
    np.testing.assert_allclose(found.values, values.sort(descending=True)[0][:4], rtol=1e-8)
    for value, vector in zip(found.values, found.vectors.T, strict=True):
        np.testing.assert_allclose(matrix.numpy() @ vector, value * vector, atol=1e-6)
    flat = torch.linalg.qr(torch.randn(400, 400, dtype=torch.double))[0]
    flat = flat @ torch.diag(torch.linspace(0.99, 1, 400, dtype=torch.double)) @ flat.T
    with pytest.raises(RuntimeError, match="did not converge to 1e-12 in 1 restarts"):
        top_eigenvalues(Dense(flat), 5, 1e-12, restarts=1)
    first, shaken = found.vectors[:, 0], matrix + 0.01 * torch.diag(torch.rand(60, dtype=torch.double))
    counted = Dense(shaken)
    products, counted.matvec = [], lambda v: products.append(v) or shaken @ v
    near = top_eigenvalues(counted, 1, 1e-3, first, basis=5)
    assert near.values[0] == pytest.approx(torch.linalg.eigvalsh(shaken)[-1].item(), rel=1e-3)
    assert len(products) < 12  # from a good start few products will do
    small = torch.diag(torch.tensor([3.0, -9.0, 1.0]))
    np.testing.assert_allclose(top_eigenvalues(Dense(small), 2).values, [3, 1])


def test_the_interval_of_a_trace_holds_it_as_often_as_it_says():
    matrix, values = random_matrix(120, 1, -1)
    wanted = values.sum().item()
    found = [trace(Dense(matrix), 60, seed) for seed in range(200)]
    inside = sum(e.low <= wanted <= e.high for e in found)
    assert 180 <= inside <= 199  # 95 % of 200


def test_hutch_plus_plus_is_nearer_than_as_many_random_signs_and_exact_for_few_weights():
    matrix, values = random_matrix()
    found = [trace(Dense(matrix), 18, seed).value for seed in range(100)]
    signs = torch.randint(2, (100, 18, 60)).double() * 2 - 1
    plain = torch.einsum("spi,ij,spj->sp", signs, matrix, signs).mean(1)
    error = [np.sqrt(np.mean((np.asarray(e) - values.sum().item()) ** 2)) for e in (found, plain.numpy())]
    assert error[0] < 0.5 * error[1]
    assert trace(Dense(matrix[:4, :4]), 12).value == pytest.approx(matrix[:4, :4].trace().item())
    with pytest.raises(ValueError, match="at least 6"):
        trace(Dense(matrix), 5)


def test_the_density_has_the_moments_of_the_spectrum_and_its_ends():
    matrix, values = random_matrix(60, 1, -3)
    nodes, weights = spectral_density(Dense(matrix), steps=60, probes=40)
    np.testing.assert_allclose(weights.sum(1), 1)
    for power in (1, 2, 3):
        moments = (weights * nodes**power).sum(1) * 60
        assert abs(moments.mean() - (values**power).sum()) < 4 * moments.std() / 40**0.5
    assert nodes.max() == pytest.approx(values.max().item(), rel=1e-6)
    assert nodes.min() == pytest.approx(values.min().item(), rel=1e-6)
    few, shares = spectral_density(Dense(torch.eye(5, dtype=torch.double)), steps=10)  # ends after one step
    assert few[0, 0] == pytest.approx(1) and shares[0].tolist() == pytest.approx([1] + [0] * 9)


def test_traces_of_layers_and_the_relative_trace_are_those_of_the_blocks():
    objective = smooth()
    wanted = dense(objective)
    operator = CurvatureOperator(objective)
    found = layer_traces(operator, objective.params, ["a", "b", "a", "b"], probes=400)
    sizes = [p.numel() for p in objective.params]
    diagonal = [part.sum().item() for part in wanted.diagonal().split(sizes)]
    blocks = [diagonal[0] + diagonal[2], diagonal[1] + diagonal[3]]
    norms = [p.detach().square().sum().item() for p in objective.params]
    relative = 0.0
    for index, (one, other) in enumerate(((0, 2), (1, 3))):
        estimate = found.of_layer(index)
        assert estimate.low <= blocks[index] <= estimate.high
        relative += (norms[one] + norms[other]) / (sizes[one] + sizes[other]) * blocks[index]
    assert found.relative.low <= relative <= found.relative.high
    assert found.relative.high - found.relative.low < 0.5 * relative
    parts = [found.relative_of_layer(index).value for index in range(2)]
    assert sum(parts) == pytest.approx(found.relative.value)
    assert found.total.value == pytest.approx(found.samples.sum(1).mean())


# ---- against curvlinops ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own imports
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_eigenvalues_and_traces_are_those_of_curvlinops(kind):
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    objective = smooth((30, 11))
    theirs = {"hessian": curvlinops.HessianLinearOperator, "gauss_newton": curvlinops.GGNLinearOperator}[kind]
    objective.model.eval()
    theirs = theirs(
        objective.model, nn.CrossEntropyLoss(), objective.params, objective.batches, check_deterministic=False
    )
    values = np.sort(eigsh(theirs.to_scipy(), 3, which="LA", tol=1e-8)[0])[::-1]
    operator = CurvatureOperator(objective, kind=kind)
    np.testing.assert_allclose(top_eigenvalues(operator, 3).values, values, rtol=1e-4)
    exact = sum(float(row @ (theirs @ row)) for row in torch.eye(operator.size, dtype=torch.double))
    found = trace(operator, 60)
    assert found.low <= exact <= found.high
