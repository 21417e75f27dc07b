"""The one order of tensors, and the file format that keeps it."""

import json
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import PlanError
from headwater.layout import Layout, Role, TensorSpec, Weights
from headwater.safetensors import (
    map_weights,
    read_tensors,
    read_weights,
    weights_size_bytes,
    write_tensors,
    write_weights,
)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=6), unique=True, max_size=8))
    kinds = st.sampled_from(
        [
            (Role.TRAINABLE, "float32"),
            (Role.AVERAGED_BUFFER, "float32"),
            (Role.AVERAGED_BUFFER, "int64"),
            (Role.FROZEN, "float32"),
            (Role.LOCAL, "int64"),
        ]
    )
    specs = []
    for name in names:
        role, dtype = draw(kinds)
        specs.append(TensorSpec(name, draw(shapes), dtype, role))
    return Layout(tuple(specs))


def random_weights(layout: Layout) -> Weights:
    generator = np.random.default_rng(0)
    floats = generator.standard_normal(layout.float_count).astype(np.float32)
    return Weights(floats, generator.integers(0, 2**40, layout.integer_count))


@given(layouts(), st.randoms())
def test_a_layout_is_a_function_of_its_set_of_tensors(layout, order):
    shuffled = Layout(tuple(order.sample(layout.tensors, len(layout.tensors))))
    assert list(shuffled.float_slices()) == list(layout.float_slices())
    assert list(shuffled.integer_slices()) == list(layout.integer_slices())


@given(layouts())
def test_flattening_and_unflattening_are_inverse(layout):
    weights = random_weights(layout)
    again = layout.flatten(layout.unflatten(weights))
    np.testing.assert_array_equal(again.floats, weights.floats)
    np.testing.assert_array_equal(again.integers, weights.integers)
    covered = [place for _, place in layout.float_slices()]
    assert sum(place.stop - place.start for place in covered) == layout.float_count


@given(layouts())
def test_weights_files_are_what_the_safetensors_library_reads(tmp_path_factory, layout):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weights = random_weights(layout)
    with path.open("wb") as file:
        write_weights(file, layout, weights)
    assert path.stat().st_size == weights_size_bytes(layout)
    theirs = safetensors.numpy.load_file(path)
    ours = layout.unflatten(weights)
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array)
    for again in (read_weights(path, layout), map_weights(path, layout)):
        assert again.floats.tobytes() == weights.floats.tobytes()
        assert again.integers.tobytes() == weights.integers.tobytes()


def test_files_in_another_order_are_copied_where_ours_are_mapped(tmp_path):
    layout = Layout(tuple(TensorSpec(name, (2,), "float32", Role.TRAINABLE) for name in "ab"))
    path = tmp_path / "w.safetensors"
    arrays = {"a": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    safetensors.numpy.save_file(arrays, path, metadata={"of": "another program"})
    assert map_weights(path, layout).floats.tolist() == [1, 2, 3, 4]
    with path.open("wb") as file:
        write_weights(file, layout, Weights(np.arange(4, dtype=np.float32), np.empty(0, np.int64)))
    mapped = map_weights(path, layout).floats
    assert mapped.tolist() == [0, 1, 2, 3]
    assert not mapped.flags.writeable
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanError, match="header says"):
        map_weights(path, layout)
    with pytest.raises(PlanError, match="cannot be read"):
        map_weights(tmp_path / "none", layout)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = {"b": np.arange(6, dtype=np.int64).reshape(2, 3), "a": np.ones(3, np.float32)}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "np"})
    found = read_tensors(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file, or is truncated"),
        (b"1234567", "is not a safetensors file, or is truncated"),
        ((2**62).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
        (_file(b"{not json"), "damaged safetensors header"),
        (_file(b"[1]"), "damaged safetensors header"),
        (_file({"a": {"dtype": "F32"}}), "damaged safetensors header"),
        (_file({"a": ONE | {"dtype": "BF16"}}, bytes(8)), "unsupported dtype 'BF16'"),
        (_file({"a": ONE | {"shape": [3]}}, bytes(8)), "does not match its shape"),
        (_file({"a": ONE | {"shape": [-1, -2]}}, bytes(8)), "does not match its shape"),
        (_file({"a": ONE | {"data_offsets": [-8, 0]}}, bytes(8)), "does not follow"),
        (_file({"a": ONE | {"data_offsets": [8, 16]}}, bytes(16)), "does not follow"),
        (_file({"a": ONE}, bytes(4)), "holds 4 bytes of values, the header says 8"),
        (_file({"a": ONE}, bytes(12)), "holds 12 bytes of values, the header says 8"),
        (_file({"a": ONE, "b": ONE}, bytes(8)), "does not follow"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_tensors(path)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_our_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "w.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    with suppress(PlanError):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "absent.safetensors")


def test_weights_of_another_model_are_refused(tmp_path):
    layout = Layout((TensorSpec("w", (3,), "float32", Role.TRAINABLE),))
    with pytest.raises(PlanError, match="lack the tensor 'w'"):
        layout.flatten({})
    with pytest.raises(PlanError, match=r"has shape \(2,\); the plan says \(3,\)"):
        layout.flatten({"w": np.ones(2, np.float32)})
    with pytest.raises(PlanError, match="do not fit this layout"):
        layout.unflatten(Weights(np.ones(2, np.float32), np.ones(0, np.int64)))


def test_layouts_that_cannot_travel_are_refused():
    with pytest.raises(PlanError, match="names the tensor 'w' twice"):
        Layout((TensorSpec("w", (), "float32", Role.TRAINABLE),) * 2)
    with pytest.raises(PlanError, match="trainable with dtype float16"):
        Layout((TensorSpec("w", (), "float16", Role.TRAINABLE),))


def test_unsupported_dtypes_are_named_when_written(tmp_path):
    with (tmp_path / "w").open("wb") as file, pytest.raises(PlanError, match="complex64"):
        write_tensors(file, {"w": np.ones(2, np.complex64)})
