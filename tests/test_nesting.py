"""What a minibatch may be made of to be halved, and what is refused because it can be split in no way or in two."""

import collections
import dataclasses
import datetime
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from seqssgd.optim import MRWP, SymmetricNoise, noise_groups

# ---- what can be split -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    y: dict
    size: int = 5


class Encoding(collections.UserDict):
    """As BatchEncoding of transformers: a mapping that is no dict."""

    def __init__(self, data=None, encoding=None):
        super().__init__(data)
        self.encoding = encoding


@dataclasses.dataclass
class Output(collections.OrderedDict):
    """As ModelOutput of transformers: a mapping and a dataclass whose fields and entries are the same."""

    x: torch.Tensor

    def __post_init__(self):
        super().__setitem__("x", self.x)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self):
        return type(self), (self.x,)


def taken(method=None, **keywords):
    """What the two passes take."""

    def of(*batch):
        model = nn.Linear(2, 2)
        base = torch.optim.SGD(noise_groups(model, 0.1), lr=0.1)
        optimizer = MRWP(base) if method else SymmetricNoise(base, signs="halves")
        return [part.take(*batch, **keywords) for part in optimizer.passes()]

    return of


X = torch.arange(10).view(5, 2)
HALVES = [X[:2].tolist(), X[2:].tolist()]


@pytest.mark.parametrize(
    "make, x_of",
    [
        (lambda x: x, lambda b: b),
        (lambda x: {"x": x, "n": 3}, lambda b: b["x"]),
        (lambda x: Pair(x, "name"), lambda b: b.x),
        (lambda x: Batch(x, {"y": x}), lambda b: b.x),
        (lambda x: Batch(x, {"y": x}), lambda b: b.y["y"]),
        (lambda x: Encoding({"x": x}, encoding="kept"), lambda b: b["x"]),
        (lambda x: Output(x), lambda b: b.x),
        (lambda x: Output(x), lambda b: b["x"]),
        (lambda x: collections.defaultdict(list, x=x), lambda b: b["x"]),
        (lambda x: types.MappingProxyType({"x": x}), lambda b: b["x"]),
        (lambda x: [x, None, ("name", x.float())], lambda b: b[2][1]),
        (lambda x: x.numpy(), lambda b: b),
        (lambda x: {"x": (x.numpy(), 2.5)}, lambda b: b["x"][0]),
    ],
)
def test_whatever_holds_tensors_is_halved(make, x_of):
    batch = make(X)
    halves = taken()(batch)
    assert [x_of(half).tolist() for half in halves] == HALVES
    assert all(type(half) is type(batch) or isinstance(batch, types.MappingProxyType) for half in halves)
    assert x_of(batch).shape == (5, 2)  # which stays as it was
    assert getattr(halves[0], "encoding", "kept") == "kept"


@pytest.mark.parametrize(
    "batch, word",
    [
        ([torch.ones(3, 8, 8), torch.ones(3, 9, 9)], "examples one by one"),
        (tuple(torch.ones(4, 5) for _ in range(6)), "examples one by one"),
        ([np.ones((3, 2))] * 4, "examples one by one"),
        ({"images": [torch.ones(3, 8, 8)] * 5, "labels": torch.ones(3)}, "examples one by one"),
        (nn.utils.rnn.pack_sequence([X, X]), "PackedSequence"),
        ((X, nn.utils.rnn.pack_sequence([X])), "PackedSequence"),
        (X.float().to_sparse(), "sparse"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested"),
        (datetime.datetime(2020, 9, 5), "datetime"),
        (types.SimpleNamespace(x=X), "SimpleNamespace"),
        ({1, 2}, "set"),
    ],
)
@pytest.mark.parametrize("method", [None, "mrwp"])
def test_what_can_be_split_in_no_way_or_in_two_is_refused(batch, word, method):
    with pytest.raises(TypeError, match=word):
        taken(method)(batch)


def test_lists_of_examples_are_halved_by_entries():
    images = [torch.full((3, 8, 8 + i), float(i)) for i in range(5)]
    for (half, names, labels), where in zip(
        taken(dim=None)(images, ("a", "b", "c", "d", "e"), torch.arange(5)), (slice(0, 2), slice(2, 5)), strict=True
    ):
        assert [image.shape[2] - 8 for image in half] == list(range(5))[where] == labels.tolist()
        assert names == tuple("abcde"[where])
    with pytest.raises(ValueError, match="one size"):
        taken(dim=None)(images, torch.arange(4))
    for no_sequence in (3, {"x": X}, "abcde"):
        with pytest.raises(TypeError, match="an entry for each example"):
            taken(dim=None)(no_sequence)


def test_a_dimension_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"dim=1\): a tensor of shape \(5,\)"):
        taken(dim=1)(X, torch.arange(5))
    assert [half.tolist() for half in taken(dim=-2)(X)] == HALVES


def test_the_classes_of_transformers_are_halved():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": X, "attention_mask": torch.ones(5, 2)})
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=X)
    for half, where in zip(taken()(encoding), HALVES, strict=True):
        assert (
            type(half) is transformers.BatchEncoding and half["input_ids"].tolist() == half.input_ids.tolist() == where
        )
        assert set(half) == set(encoding)
    for half, where in zip(taken()(output), HALVES, strict=True):
        assert type(half) is type(output)
        assert half.last_hidden_state.tolist() == half["last_hidden_state"].tolist() == half[0].tolist() == where


# ---- which lists are parts of a minibatch, and which are examples ----------------------------------------------------


class Two(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


PARTS = {
    "a DataLoader's list": [torch.ones(6, 8), torch.ones(6, 1)],
    "a tuple": (torch.ones(6, 8), torch.ones(6, 1)),
    "a tuple of two alike": (torch.ones(6, 8), torch.zeros(6, 8)),
    "a named tuple of two alike": Two(torch.ones(6, 8), torch.zeros(6, 8)),
    "as many as there are examples": [torch.ones(2, 8), torch.ones(2, 1)],
    "sequences": [torch.ones(4, 7, 8), torch.ones(4, 7, 1)],
    "images at two resolutions": [torch.ones(6, 3, 8, 8), torch.ones(6, 3, 4, 4)],
    "nested": {"a": ([torch.ones(6, 8), torch.ones(6, 1)], torch.ones(6))},
    "mappings": ({"x": torch.ones(2, 8)}, {"y": torch.ones(2, 8)}),
}


@pytest.mark.parametrize("batch", PARTS.values(), ids=PARTS)
def test_lists_of_several_tensors_of_a_minibatch_are_halved(batch):
    def leaves(tree):
        if isinstance(tree, torch.Tensor):
            return [tree]
        return [leaf for value in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(value)]

    halves = taken()(batch)
    assert all(type(half) is type(batch) for half in halves)
    for whole, *two in zip(leaves(batch), *map(leaves, halves), strict=True):
        assert len(two[0]) == len(whole) // 2 and torch.equal(torch.cat(two), whole)


def boxes(n):
    return {"boxes": torch.ones(6, 4), "masks": torch.ones(6, n, n), "label": 3}


@pytest.mark.parametrize(
    "batch, word",
    [
        ([torch.ones(6, 8), torch.ones(6, 8)], "examples one by one"),  # sequences of equal lengths?
        ([{"boxes": torch.ones(6, 4)}] * 6, "examples one by one"),
        ([{"boxes": torch.ones(6, 4)}] * 5, "examples one by one"),
        ((torch.ones(6, 3), [boxes(n) for n in range(1, 7)]), "examples one by one"),
        ((torch.ones(6, 3), tuple((b["boxes"], b["masks"]) for b in map(boxes, range(1, 7)))), "examples one by one"),
        ({"x": torch.ones(6, 8), "labels": [0, 1, 2, 3, 4, 5]}, "make it a tensor"),
        ({"x": torch.ones(6, 8), "labels": (0.5,) * 6}, "make it a tensor"),
    ],
)
def test_lists_that_may_be_examples_are_refused(batch, word):
    with pytest.raises(TypeError, match=word):
        taken()(batch)


def test_strings_are_halved_if_there_is_one_for_each_example_and_plain_values_stay_whole():
    batch = {"x": X, "id": tuple("abcde"), "path": list("vwxyz"), "classes": ["cat", "dog"], "size": (48, 64), "no": []}
    for half, where in zip(taken()(batch), (slice(0, 2), slice(2, 5)), strict=True):
        assert half["id"] == tuple("abcde"[where]) and half["path"] == list("vwxyz"[where])
        assert (half["classes"], half["size"], half["no"]) == (["cat", "dog"], (48, 64), [])
