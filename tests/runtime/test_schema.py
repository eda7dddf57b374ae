import dataclasses
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hold_jax.errors import UserError
from hold_jax.runtime import schema


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = schema.real(0.5, "(0, 1]", "a rate")
    sizes: tuple[int, ...] | None = schema.several(None, int, "[1, 9]", "[1, 3]", "sizes")


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = schema.whole(3, "[0, 2^32)", "how many")
    order: int | None = schema.whole(None, "[1, 6]", "of the process")
    kind: str = schema.choice("log", ("log", "uniform"), "of grid")
    on: bool = schema.switch(False, "whether")
    file: str | None = schema.path(None, "of weights")
    inner: Inner = schema.section(Inner)


def test_values_arrive_typed_and_missing_ones_keep_their_default():
    assert schema.read(Outer, {}) == Outer()
    found = schema.read(Outer, {"count": 0, "inner.rate": 1, "inner.sizes": [1, 2], "order": None, "file": "~/a"})
    assert found == Outer(count=0, inner=Inner(rate=1.0, sizes=(1, 2)), file="~/a")
    assert isinstance(found.inner.rate, float)
    assert list(schema.keys(Outer)) == ["count", "order", "kind", "on", "file", "inner.rate", "inner.sizes"]


WRONG = [
    ("count", True, "`count` is True; it must be a whole number at least 0 and below 2^32"),
    ("count", 2**32, "`count` is 4294967296; it must be a whole number at least 0 and below 2^32"),
    ("count", 1.0, "`count` is 1.0; it must be a whole number"),
    ("count", None, "`count` is None; it must be a whole number"),
    ("order", 0, "`order` is 0; it must be a whole number from 1 to 6, or None"),
    ("order", 10**5000, "`order` is a very large int; it must be a whole number from 1 to 6, or None"),
    ("kind", "lug", "`kind` is 'lug' (did you mean 'log'?); it must be one of: log, uniform"),
    ("kind", 3, "`kind` is 3; it must be one of: log, uniform"),
    ("on", 1, "`on` is 1; it must be True or False"),
    ("file", "", "`file` is ''; it must be a path that can exist, or None"),
    ("file", "a\0b", "`file` is 'a\\x00b'; it must be a path that can exist, or None"),
    ("file", "x" * 256, f"`file` is '{'x' * 56}...; it must be a path"),
    ("file", "~no_such_user/x", "`file` is '~no_such_user/x'; it must be a path"),
    ("file", "npz:~no_such_user/x", "`file` is 'npz:~no_such_user/x'; it must be a path"),
    ("file", "\udcff", "`file` is '\\udcff'; it must be a path"),
    ("inner.rate", 0.0, "`inner.rate` is 0.0; it must be a number above 0 and at most 1"),
    ("inner.rate", math.nan, "`inner.rate` is nan; it must be a number above 0 and at most 1"),
    ("inner.rate", math.inf, "`inner.rate` is inf; it must be"),
    ("inner.rate", 1e300, "`inner.rate` is 1e+300; it must be"),
    ("inner.sizes", (), "`inner.sizes` is (); it must be a tuple such as (1, 2) of whole numbers from 1 to 9"),
    ("inner.sizes", (1, 2, 3, 4), "`inner.sizes` is (1, 2, 3, 4); it must be a tuple"),
    ("inner.sizes", (1, True), "`inner.sizes` is (1, True); it must be a tuple"),
    ("inner.sizes", "12", "`inner.sizes` is '12'; it must be a tuple"),
    ("inner.size", (1,), "there is no key `inner.size` (did you mean 'inner.sizes'?)"),
    ("inner.lr", 1, "there is no key `inner.lr`; inner has "),
    ("else", 1, "there is no key `else`"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_value_is_one_line_that_names_it(key, value, message):
    with pytest.raises(UserError) as caught:
        schema.read(Outer, {key: value})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "7", 7),
        ("order", "None", None),
        ("on", "true", True),
        ("on", "0", False),
        ("inner.rate", "1e-3", 1e-3),
        ("inner.sizes", "(1,)", (1,)),
        ("inner.sizes", "[1, 2]", (1, 2)),
        ("kind", "uniform", "uniform"),
        ("file", "None", None),
    ],
)
def test_a_flag_s_text_becomes_its_value(key, text, value):
    known = schema.keys(Outer)[key]
    assert known.check(key, known.parse(key, text)) == value


@given(key=st.sampled_from(list(schema.keys(Outer))), text=st.text())
def test_any_text_is_a_value_in_range_or_one_line(key, text):
    known = schema.keys(Outer)[key]
    try:
        value = known.check(key, known.parse(key, text))
    except UserError as error:
        assert str(error).startswith(f"`{key}` is ") and len(str(error)) < 300
        return
    # What was accepted is accepted again, as itself.
    assert known.check(key, value) == value


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(key=st.sampled_from(list(schema.keys(Outer))), value=anything)
def test_any_value_is_in_range_or_one_line(key, value):
    try:
        schema.read(Outer, {key: value})
    except UserError as error:
        assert str(error).startswith(f"`{key}` is ") and len(str(error).splitlines()) == 1


@given(st.binary() | anything.map(repr).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_an_object_or_one_reason(data):
    try:
        assert isinstance(schema.json_object(data), dict)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


def test_json_nested_too_deeply_is_one_reason():
    for data in (b"[" * 10**6, b'{"a":' * 10**6):
        with pytest.raises(ValueError, match="nested too deeply"):
            schema.json_object(data)
    deep: list = []
    for _ in range(sys.getrecursionlimit() + 100):
        deep = [deep]
    with pytest.raises(UserError, match=r"`count` is (a deeply nested list|\[\[)"):
        schema.read(Outer, {"count": deep})


@pytest.mark.parametrize(
    ("words", "want"),
    [("7", [(7, 8)]), ("3,17", [(3, 4), (17, 18)]), ("0:64", [(0, 64)]), (" 1, 2:4 ,9 ", [(1, 2), (2, 4), (9, 10)])],
)
def test_numbers_and_ranges(words, want):
    assert schema.ranges(words) == want


@pytest.mark.parametrize("words", ["", ",", "3,", "-1", "1.5", "5:5", "6:5", "3,3", "4,3", "0:5,4", "1:2:3", "²", "x",
                                   "2147483648", "0:99999999999"])  # fmt: skip
def test_what_is_no_rising_range_is_an_error(words):
    with pytest.raises(ValueError):
        schema.ranges(words)
