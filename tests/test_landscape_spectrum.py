"""What is estimated from products with a matrix: eigenvalues, traces, density."""

import numpy as np
import pytest
import torch
from objectives import dense, smooth
from torch import nn

from seqssgd.landscape import CurvatureOperator, layer_traces, spectral_density, top_eigenvalues, trace


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
