"""Lines, planes and slices against what they are defined by; grids that are interrupted, shared out, or not finite."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from seqssgd.errors import UserError
from seqssgd.landscape.surface import line, measure, plane, random_slice, read_surface, weights_of

A, B = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4)


def solutions(count=3):
    return [[torch.randn(4, 3), torch.randn(4)] for _ in range(count)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_line_goes_through_both_and_a_plane_through_all_three_at_true_distances():
    one, two, three = solutions()
    assert_same(line(one, two).weights(0), one)
    assert_same(line(one, two).weights(1), two)
    assert_same(line(one, two).weights(0.25), [0.75 * a + 0.25 * b for a, b in zip(one, two, strict=True)])
    found = plane([one, two, three], ["a", "b", "c"])
    for name, weights in zip("abc", (one, two, three), strict=True):
        assert_same(found.weights(*found.positions[name]), weights)
    for x, p in (("b", two), ("c", three)):
        distance = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, p, strict=True)))
        assert math.dist(found.positions["a"], found.positions[x]) == pytest.approx(distance, rel=1e-5)
    across = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(two, three, strict=True)))
    assert math.dist(found.positions["b"], found.positions["c"]) == pytest.approx(across, rel=1e-5)


def test_three_on_a_line_equal_ones_and_other_models_are_refused():
    one, two, three = solutions()
    between = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
    for trio in ([one, two, between], [one, between, two], [one, one, two], [one, two, two], [one, two, one]):
        with pytest.raises(ValueError, match="a, b, c lie on one line"):
            plane(trio, ["a", "b", "c"])
    with pytest.raises(ValueError, match="three solutions, not 2"):
        plane([one, two])
    with pytest.raises(ValueError, match="start and end have the same weights"):
        line(one, one)
    with pytest.raises(ValueError, match="different models"):
        line(one, three[:1])


def test_the_filters_of_a_random_direction_are_as_long_as_those_of_the_weights():
    weights = [torch.randn(5, 3, 2, 2), torch.randn(5), torch.randn(4, 5)]
    weights[0][2] = 0  # a filter that is dead stays dead
    found = random_slice(weights, seed=3)
    for direction in (found.first, found.second):
        assert not direction[1].any()
        for d, w in ((direction[0], weights[0]), (direction[2], weights[2])):
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
    assert not torch.equal(found.first[0], found.second[0])
    again = random_slice(weights, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found.first + found.second, again.first + again.second, strict=True))


# ---- grids -----------------------------------------------------------------------------------------------------------


class Counted:
    """Builds a model whose figures are functions of its weights; counts, and interrupts when told to."""

    def __init__(self, interrupt_after=None):
        self.calls, self.interrupt_after = 0, interrupt_after

    def __call__(self):
        model = nn.Linear(3, 4)

        def figures():
            if self.calls == self.interrupt_after:
                raise KeyboardInterrupt
            self.calls += 1
            first = model.weight[0, 0].item()
            return {"sum": float(model.weight.sum()), "log": math.log(first) if first > 0 else math.nan}

        return model, figures


def shape():
    torch.manual_seed(1)
    return random_slice(weights_of(nn.Linear(3, 4)))


def test_values_are_those_at_the_points(tmp_path):
    found = measure(shape(), A, B, Counted(), tmp_path / "s.npz")
    assert found.complete and found.values["sum"].shape == (5, 4)
    lost = 0
    for i, a in enumerate(A):
        for j, b in enumerate(B):
            weight = shape().weights(a, b)[0]
            assert found.values["sum"][i, j] == pytest.approx(float(weight.sum()), rel=1e-5, abs=1e-6)
            lost += int(weight[0, 0] <= 0)
    assert 0 < lost == found.missing == np.isnan(found.values["log"]).sum()
    read = read_surface(tmp_path / "s.npz")
    np.testing.assert_array_equal(read.values["log"], found.values["log"])
    assert read.positions == {"solution": (0.0, 0.0)} and read.done.all()


def test_an_interrupted_grid_goes_on_and_comes_to_the_same(tmp_path):
    whole = measure(shape(), A, B, Counted(), tmp_path / "whole.npz")
    first = Counted(interrupt_after=7)
    with pytest.raises(KeyboardInterrupt):
        measure(shape(), A, B, first, tmp_path / "part.npz")
    assert read_surface(tmp_path / "part.npz").done.sum() == 7
    late = Counted()
    stopped = measure(shape(), A, B, late, tmp_path / "part.npz", deadline=0.0)
    assert not stopped.complete and late.calls == 0
    second = Counted()
    found = measure(shape(), A, B, second, tmp_path / "part.npz")
    assert second.calls == 20 - 7 and found.complete
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)
    third = Counted()
    measure(shape(), A, B, third, tmp_path / "part.npz")
    assert third.calls == 0


def test_the_first_points_are_spread_over_the_grid(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(shape(), np.arange(9.0), np.arange(9.0), Counted(9), tmp_path / "s.npz")
    done = read_surface(tmp_path / "s.npz").done
    assert done[[0, 4, 8]][:, [0, 4, 8]].sum() >= 8


def test_a_file_of_another_surface_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s.npz"
    measure(shape(), A, B, Counted(), path, about="test set")
    before = path.read_bytes()
    for other in (
        lambda: measure(random_slice(weights_of(nn.Linear(3, 4)), 5), A, B, Counted(), path, about="test set"),
        lambda: measure(shape(), A[:3], B, Counted(), path, about="test set"),
        lambda: measure(shape(), A, B, Counted(), path, about="validation set"),
    ):
        with pytest.raises(UserError, match="of other weights, grid or data"):
            other()
    assert path.read_bytes() == before
    path.write_bytes(before[:100])
    with pytest.raises(UserError, match="damaged"):
        measure(shape(), A, B, Counted(), path, about="test set")
    with pytest.raises(UserError, match="no such surface"):
        read_surface(tmp_path / "other.npz")


def build_for_a_process():
    return Counted()()


def test_two_processes_come_to_the_same_as_one(tmp_path):
    alone = measure(shape(), A, B, build_for_a_process, tmp_path / "one.npz")
    shared = measure(shape(), A, B, build_for_a_process, tmp_path / "two.npz", processes=2)
    for name, values in alone.values.items():
        np.testing.assert_array_equal(shared.values[name], values)


def test_a_model_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="different models"):
        measure(random_slice([torch.randn(2, 2)]), A, B, Counted(), tmp_path / "s.npz")
