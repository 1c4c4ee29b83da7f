"""Hessian and Gauss-Newton products against matrices that are written out."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from objectives import Cnn, classification, dense, language, rows, smooth, speech
from torch import nn

from seqssgd.landscape import CurvatureOperator, top_eigenvalues, trace
from seqssgd.landscape.curvature import _nodes
from seqssgd.landscape.fast import FastTwice
from seqssgd.speech import recognizer

OBJECTIVES = {"smooth": smooth, "cnn": lambda: classification(Cnn(), (7, 3)), "lstm": language, "speech": speech}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_products_eigenvalues_and_traces_are_those_of_the_matrix_written_out(name):
    objective = OBJECTIVES[name]()
    wanted = dense(objective)
    state = {key: value.clone() for key, value in objective.model.state_dict().items()}
    for kept in (False, True):
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


def test_a_layers_block_is_a_block_of_the_whole():
    objective = smooth()
    wanted = dense(objective)
    layer = [objective.params[2]]
    first = sum(p.numel() for p in objective.params[:2])
    block = wanted[first : first + layer[0].numel(), first : first + layer[0].numel()]
    vector = torch.randn(len(block), dtype=torch.double)
    torch.testing.assert_close(CurvatureOperator(objective, layer).matvec(vector), block @ vector)


def test_the_weights_may_be_in_any_order():
    objective = classification(nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False)), (9,),
                               rows)  # fmt: skip
    matrix, vector = dense(objective), torch.randn(50, dtype=torch.double)
    for method in ("exact", "differences"):
        operator = CurvatureOperator(objective, objective.params[::-1], method=method)
        torch.testing.assert_close(operator.matvec(vector.roll(25)), (matrix @ vector).roll(25), atol=1e-6, rtol=1e-6)


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
