"""YAML and JSON from anywhere: limits on what they may hold, each named with its line."""

import math
import re
import time
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from seqssgd.documents import parse_json, parse_yaml, read_json, read_yaml
from seqssgd.errors import UserError
from seqssgd.kinds import misfit


def laughs(levels: int = 9) -> bytes:
    """A few hundred bytes whose aliases stand for 9 to the power of ``levels`` values."""
    lines = ["a0: &a0 [" + ",".join("x" * 9) + "]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"optim: {lr: 1}\nseed: 3\noptim: {lr: 2}\n", "optim is given twice, in lines 1 and 3"),
        (b"optim:\n  method: ssgd\n  lr: 1\n  method: sam\n", "method is given twice, in lines 2 and 4"),
        (b"optim: {a: 1, 'a': 2}", "a is given twice, in lines 1 and 1"),
        (b"yes: 1\ntrue: 2", "true is given twice, in lines 1 and 2"),
        (b"1: a\n0x1: b", "0x1 is given twice, in lines 1 and 2"),
        (b"b: &b {lr: 1}\no:\n  <<: *b\n  <<: *b", "<< is given twice, in lines 3 and 4"),
        (b'a: 1\nb: "x\\0y"', "line 2: a NUL character"),
        (b'"a\\0": 1', "line 1: a NUL character"),
        (b"!!bool x", "not of the kind that its tag says"),
        (b"!!timestamp x", "not of the kind that its tag says"),
        (b"!!int ''", "not of the kind that its tag says"),
        (b"[" * 1000, "nested deeper than 50"),
        (b"a: " * 40_000, "no settings|nested"),
        (b"x: &x [*x]", "line 1: more than 100,000 values"),
        (laughs(), "line [56]: more than 100,000 values, with those that aliases repeat"),
        (b"a: " + b"x" * 1_000_001, "more than 1,000,000 bytes"),
        (b"caf\xe9: 1", "not UTF-8: wrong byte at offset 3"),
        (b"!!python/object/apply:os.system [ls]", "no settings in YAML"),
        (b"a: [", "no settings in YAML .*line 1"),
        (b"? [1]\n: 2", "no settings in YAML"),
        (b"when: !!timestamp 2020-13-45", "month must be in"),
    ],
)
def test_what_is_refused_and_how(content, said):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=said):
        parse_yaml(content)
    assert time.monotonic() - begin < 5


def test_what_configurations_use_is_read():
    text = "\ufeffbase: &base {lr: 0.1, method: ssgd}\nmine:\n  <<: *base\n  method: sam\nlist: [*base, *base]\n"
    base = {"lr": 0.1, "method": "ssgd"}
    assert parse_yaml(text.encode()) == {"base": base, "mine": {"lr": 0.1, "method": "sam"}, "list": [base, base]}
    assert parse_yaml(b"") is None
    assert parse_yaml(b"when: 2020-13-45") == {"when": "2020-13-45"}


def test_the_message_begins_with_the_file_and_ends_with_the_mend(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match=r"^\S+c\.yaml: a is given twice, in lines 1 and 2: keep one of them; mend it$"):
        read_yaml(tmp_path / "c.yaml", "mend it")
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read \(No such file"):
        read_yaml(tmp_path / "absent.yaml", "mend it")


def test_json_that_is_nested_too_deep_or_gives_a_key_twice_is_refused_with_its_file(tmp_path):
    assert parse_json(b'{"a": [1, {"b": 2}], "b": 3}') == {"a": [1, {"b": 2}], "b": 3}
    cases = {"[" * 100_000: "nested too deep", '{"a":' * 100_000: "nested too deep", "": "Expecting value",
             '{"c": 0, "a": {"b": 1, "b": 2}}': "b is given twice: keep one of them"}  # fmt: skip
    for content, said in cases.items():
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            parse_json(content)
        with pytest.raises(UserError, match=rf"x\.json is damaged \({said}.*\); mend it$"):
            read_json(tmp_path / "x.json", "mend it")
    (tmp_path / "x.json").write_text('{"lines": "a"}')
    with pytest.raises(UserError, match=r"x\.json is damaged \(lines: 'a' is not a whole number\); mend it$"):
        read_json(tmp_path / "x.json", "mend it", Lines)


class Lines(TypedDict):
    lines: int
    share: NotRequired[float]


class Other(TypedDict):
    other: int


@pytest.mark.parametrize("kind, good, bad, said", [
    (int, -3, True, "x: True is not a whole number"), (int, 0, 10**30, "x: 1000.* is not a usable number"),
    (float, 2, math.nan, "x: nan is not a usable number"), (float, 1e300, 10**30, "is not a usable number"),
    (str, "", None, "x: None is not a text"), (bool, False, 0, "x: 0 is not true or false"),
    (Literal["a"], "b", 3, "x: 3 is not a text"), (float | None, None, "a", "x: 'a' is not a number"),
    (int | str, "a", 0.5, "x: 0.5 is not a whole number or a text"), (Any, [None], None, None),
    (list[int], [], [1, "b"], "x: 'b' is not a whole number"), (list[int], [1, 2], "ab", "x: 'ab' is not a list"),
    (tuple[int, str], [1, "b"], [1], r"x: \[1\] is not a list of 2"), (tuple[int, ...], [1] * 5, [1, None], "None"),
    (dict[str, dict[str, int]], {"a": {"b": 1}}, {"a": {"b": []}}, r"x\.a\.b: \[\] is not a whole number"),
    (dict[str, int], {}, [1], r"x: \[1\] is not a group of named values"),
    (list, [None], {}, r"x: \{\} is not a list"), (dict, {"a": None}, [], r"x: \[\] is not a group"),
    (Lines, {"lines": 1, "more": []}, {"share": 0.5}, r"x\.lines is missing"),
    (float, 1, "x", "x: 'x' is not a number"), (int, 1, math.inf, "x: inf is not a whole number"),
    (Other | Lines, {"lines": 1}, {"lines": "a"}, r"x\.other is missing"),
    (Lines | Other, {"other": 1}, {"lines": "a"}, r"x\.lines: 'a' is not a whole number"),
    (Lines | Other, {"other": 1}, 3, "x: 3 is not a group of named values"),
    (Lines | None, {"lines": 1, "share": 2}, {"lines": 1, "share": "a"}, r"x\.share: 'a' is not a number"),
])  # fmt: skip
def test_values_are_what_annotations_say(kind, good, bad, said):
    assert misfit(kind, good, "x") is None
    found = misfit(kind, bad, "x")
    assert found is None if said is None else re.search(said, found) and len(found) < 120
