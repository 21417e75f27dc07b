from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.batch import TensorSignature
from headwater.errors import DataError
from headwater.sources.columns import choose_columns
from headwater.sources.fields import Field, Origin, shape_rule

ORIGIN = Origin("data.npz")


def field(shape=(), dtype="float32", maximum=None, scale=None, columns=("c",)):
    return Field(TensorSignature("t", shape, dtype, maximum), columns, scale)


def taken(values, **signature):
    one = field(**signature)
    return one.finish(one.compact(np.asarray(values), ORIGIN))


@pytest.mark.parametrize(
    ("stored", "wanted", "rule"),
    [
        ((3, 4), (3, 4), "keep"),
        ((), (1,), "reshape"),
        ((8, 8), (1, 8, 8), "reshape"),
        ((64,), (1, 8, 8), "reshape"),
        ((8, 8), (64,), "reshape"),
        ((32, 30, 3), (3, 32, 30), "transpose"),
        ((3, 32, 30), (32, 30, 3), "refuse"),
        ((32, 30, 3), (3, 30, 32), "refuse"),
        ((2, 6), (3, 4), "refuse"),
        ((4,), (5,), "refuse"),
    ],
)
def test_shapes(stored, wanted, rule):
    assert shape_rule(stored, wanted) == rule


def test_channels_move_first():
    values = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    out = taken(values, shape=(3, 4, 5))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.float32(values.transpose(0, 3, 1, 2)) / np.float32(255))


def test_pixels_are_scaled_and_stay_small_until_finished():
    one = field(shape=(2, 2))
    compact = one.compact(np.array([[[0, 51], [102, 255]]], np.uint8), ORIGIN)
    assert compact.dtype == np.uint8
    np.testing.assert_array_equal(
        one.finish(compact), np.array([[[0, 51], [102, 255]]], np.float32) / np.float32(255)
    )


def test_flat_bytes_are_numbers_not_pixels():
    np.testing.assert_array_equal(taken(np.array([[1, 255]], np.uint8), shape=(2,)), [[1, 255]])


def test_scale_replaces_the_rule_for_pixels_and_applies_to_floats():
    assert taken(np.full((1, 1, 1), 8, np.uint8), shape=(1, 1), scale=Fraction(1, 16)) == 0.5
    assert taken([8.0], scale=Fraction(1, 16)) == 0.5
    assert taken([8], dtype="int64", scale=Fraction(1, 16)) == 8


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_int64_comes_through_exactly(numbers):
    np.testing.assert_array_equal(taken(np.array(numbers, np.int64), dtype="int64"), numbers)


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1))
def test_integral_floats_become_integers_exactly(numbers):
    np.testing.assert_array_equal(taken(np.array(numbers, np.float64), dtype="int64"), numbers)


@pytest.mark.parametrize(
    ("values", "signature", "message"),
    [
        ([1.0, np.nan], {}, "row 1: nan is not a finite number"),
        ([np.inf], {}, "row 0: inf is not a finite number"),
        ([1.0, 2.5], {"dtype": "int64"}, "row 1: 2.5 is not an integer"),
        ([3, 10], {"dtype": "int64", "maximum": 10}, "row 1: 10 is out of range: .* 0 to 9"),
        ([-1], {"dtype": "int64", "maximum": 10}, "row 0: -1 is out of range"),
        (np.array([200], np.uint8), {"dtype": "int64", "maximum": 10}, "200 is out of range"),
        ([1e39], {}, r"row 0: 1e\+39 does not fit float32"),
        ([2**40], {"dtype": "int32"}, "out of range"),
        ([1e19], {"dtype": "int64"}, "out of range"),
        (np.array([2**63], np.uint64), {"dtype": "int64"}, "out of range"),
        (np.array([70000.0], np.float32), {"dtype": "int16"}, "out of range"),
        ([2], {"dtype": "bool"}, "out of range"),
        (["a"], {}, "column 'c' holds <U1 values, 't' of the model wants float32"),
        ([[1, 2]], {"shape": (3,)}, r"shape \[2\] for each example, 't' of the model wants \[3\]"),
    ],
)
def test_refused_values(values, signature, message):
    with pytest.raises(DataError, match=f"data.npz: .*{message}"):
        taken(values, **signature)


def test_of_several_columns_the_right_one_is_named():
    values = np.array([[1, 2], [3, np.nan]])
    with pytest.raises(DataError, match="column 'b', row 1"):
        taken(values, shape=(2,), columns=("a", "b"))


def test_rows_are_those_of_the_file():
    origin = Origin("f", np.array([10, 20, 30]))
    with pytest.raises(DataError, match="f: column 'c', row 30"):
        field().compact(np.array([0, 0, np.nan]), origin)


X, Y = TensorSignature("x0", (), "float32"), TensorSignature("x1", (), "float32")


@pytest.mark.parametrize(
    ("available", "requested", "signatures", "chosen"),
    [
        (["label", "img"], None, [X], (("img",),)),
        (["x0", "x"], None, [X], (("x0",),)),
        (["x1", "x0"], None, [X, Y], (("x0",), ("x1",))),
        (["a", "b"], ["b", "a"], [X, Y], (("b",), ("a",))),
        (["a", "b"], ["b", "a"], [X], (("b", "a"),)),
        (["a"], None, [], ()),
    ],
)
def test_chosen_columns(available, requested, signatures, chosen):
    assert choose_columns("f", available, requested, signatures, "input") == chosen


@pytest.mark.parametrize(
    ("available", "requested", "signatures", "message"),
    [
        (["a", "b"], None, [X], r"cannot tell .* 'x0' .*\?input=COLUMN .*there are: 'a', 'b'\)"),
        (["x", "b"], None, [X, Y], "cannot tell"),
        (["a", "b"], ["c"], [X], r"no column 'c' \(columns there are: 'a', 'b'\)"),
        (["a", "b", "c"], ["a", "b", "c"], [X, Y], "names 3 columns, the model has 2 inputs"),
        ([f"c{i}" for i in range(25)], ["d"], [X], "'c19' and 5 more"),
    ],
)
def test_columns_that_cannot_be_chosen(available, requested, signatures, message):
    with pytest.raises(DataError, match=message):
        choose_columns("f", available, requested, signatures, "input")
