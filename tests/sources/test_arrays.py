"""Sources that are read into memory: .npz, .csv and the digits."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.batch import TensorSignature
from headwater.errors import DataError, MissingExtraError, UsageError
from headwater.sources import open_source


def write_npz(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def write_csv(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text)
    return str(path)


WEIGHT = TensorSignature("importance", (), "float32", is_weight=True)


def test_weights_come_by_name_beside_the_targets(tmp_path, vector_input, label):
    """The target is still found by a usual name, or by the option that names it."""
    arrays = {"x": np.ones((5, 2)), "importance": np.arange(5)}
    named = write_npz(tmp_path, **arrays, label=np.arange(5))
    for binding in (named, f"{named}?target=label"):
        (batch,) = open_source(binding, vector_input, [*label, WEIGHT]).batches(5, None)
        np.testing.assert_array_equal(batch.targets[0], np.arange(5))
        np.testing.assert_array_equal(batch.weights, np.arange(5, dtype=np.float32))
        assert batch.weights.dtype == np.float32
        assert batch.mass == 10
        assert batch.part(1, 3).mass == 3
    (plain,) = open_source(named, vector_input, label).batches(5, None)
    assert plain.weights is None
    assert plain.mass == 5


def test_a_csv_column_of_weights_is_no_feature(tmp_path, vector_input, label):
    path = write_csv(tmp_path, "a,b,label,importance\n1,2,0,0.5\n3,4,1,1.5\n")
    (batch,) = open_source(path, vector_input, [*label, WEIGHT]).batches(2, None)
    np.testing.assert_array_equal(batch.inputs[0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(batch.weights, np.array([0.5, 1.5], np.float32))


def test_weights_that_are_not_there_are_told(tmp_path, vector_input, label):
    path = write_npz(tmp_path, x=np.ones((5, 2)), label=np.arange(5))
    with pytest.raises(DataError, match=r"no column 'importance', which holds the examples' weig"):
        open_source(path, vector_input, [*label, WEIGHT])


def test_npz_in_stored_order_and_by_seed(tmp_path, vector_input, label, gather):
    x = np.random.default_rng(0).normal(size=(30, 2))
    path = write_npz(tmp_path, x=x, y=np.arange(30) % 10)
    source = open_source(path, vector_input, label)
    assert source.example_count() == 30
    assert source.name == path
    stored = gather(source)
    np.testing.assert_array_equal(stored.inputs[0], x.astype(np.float32))
    assert stored.targets[0].dtype == np.int64
    one, again, other = (gather(source, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.inputs[0], again.inputs[0])
    assert (one.inputs[0] != other.inputs[0]).any()
    order = np.lexsort(one.inputs[0].T), np.lexsort(stored.inputs[0].T)
    np.testing.assert_array_equal(one.targets[0][order[0]], stored.targets[0][order[1]])


def test_batches_are_the_caller_s_to_change(tmp_path, vector_input, label, gather):
    source = open_source(
        write_npz(tmp_path, x=np.ones((3, 2), "f4"), y=[1, 2, 3]), vector_input, label
    )
    next(source.batches(3, None)).inputs[0][:] = 7
    np.testing.assert_array_equal(gather(source).inputs[0], np.ones((3, 2)))


def test_npz_with_several_inputs_and_a_float_target(tmp_path, gather):
    inputs = [TensorSignature("a", (2,), "float32"), TensorSignature("b", (), "int64", 5)]
    target = [TensorSignature("y0", (1,), "float32")]
    path = write_npz(tmp_path, a=np.ones((4, 2)), b=np.arange(4), value=np.arange(4.0))
    batch = gather(open_source(f"{path}?target=value", inputs, target))
    assert [part.shape for part in (*batch.inputs, *batch.targets)] == [(4, 2), (4,), (4, 1)]


@pytest.mark.parametrize(
    ("arrays", "query", "message"),
    [
        ({"x": np.ones((3, 2)), "y": np.zeros(2)}, "", "differ in length: 'x' has 3, 'y' has 2"),
        ({"x": np.ones((0, 2)), "y": np.zeros(0)}, "", "empty shard"),
        ({"a": np.ones((3, 2)), "y": np.zeros(3)}, "", "columns there are: 'a', 'y'"),
        ({"x": np.ones((3, 5)), "y": np.zeros(3)}, "", r"shape \[5\]"),
        ({"x": np.ones((3, 2)), "y": np.array([0, 1, 10])}, "", "column 'y', row 2: 10"),
        ({"x": np.ones((3, 2)), "y": np.float64(1)}, "", "'y' is a single value"),
        ({"x": np.array([[1, np.inf]]), "y": [0]}, "", "column 'x', row 0: inf"),
        ({"x": np.ones((3, 2)), "y": np.zeros(3)}, "?input=x,y&target=y", r"one number an example"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, vector_input, label, arrays, query, message):
    with pytest.raises(DataError, match=rf"data\.npz.*{message}"):
        open_source(write_npz(tmp_path, **arrays) + query, vector_input, label)


def test_npz_is_never_unpickled(tmp_path, vector_input, label):
    path = write_npz(tmp_path, x=np.array([object()] * 2), y=np.zeros(2))
    with pytest.raises(DataError, match="allow_pickle"):
        open_source(path, vector_input, label)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_truncated_npz(tmp_path, vector_input, label, kept):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((100, 2)), y=np.zeros(100))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        open_source(str(path), vector_input, label)


def test_a_damaged_npz(tmp_path, vector_input, label):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(500, 2)), y=np.zeros(500))
    data = bytearray(path.read_bytes())
    data[200:240] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        open_source(str(path), vector_input, label)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_damage_is_refused_or_harmless(tmp_path, vector_input, label, data):
    path = tmp_path / "fuzz.npz"
    np.savez_compressed(path, x=np.ones((5, 2)), y=np.zeros(5))
    archive = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(archive)
    try:
        assert open_source(str(path), vector_input, label).example_count() == 5
    except DataError as error:
        assert "fuzz.npz" in str(error)


def test_an_array_named_npz(tmp_path, vector_input, label):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        open_source(str(tmp_path / "data.npz"), vector_input, label)


def test_csv_takes_all_but_the_target_as_features(tmp_path, vector_input, label, gather):
    path = write_csv(tmp_path, "\ufeffwidth,label,height\n1,3,2.5\n\n4,0,-1e3\n")
    batch = gather(open_source(path, vector_input, label))
    np.testing.assert_array_equal(batch.inputs[0], [[1, 2.5], [4, -1000]])
    np.testing.assert_array_equal(batch.targets[0], [3, 0])


def test_csv_columns_by_name(tmp_path, vector_input, label, gather):
    path = write_csv(tmp_path, "id,a,b,kind\n7,1,2,3\n")
    batch = gather(open_source(f"{path}?input=b,a&target=kind", vector_input, label))
    np.testing.assert_array_equal(batch.inputs[0], [[2, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,3\n1,x,3\n", "column 'b', row 1: 'x' is not a number"),
        ("a,b,y\n1,,3\n", "column 'b', row 0: '' is not a number"),
        ("a,b,y\n1,nan,3\n", "column 'b', row 0: nan is not a finite number"),
        ("a,b,y\n1,2,3\n1,2\n", "row 1 has 2 cells, the header names 3 columns"),
        ("a,b,c,y\n1,2,3,4\n", r"'a, b, c' holds values of shape \[3\] .* wants \[2\]"),
        ("a,b,y\n", "empty shard"),
        ("", "empty shard"),
        ("1,2,3\n1,2,3\n", "first line holds only numbers"),
        ("a,a,y\n1,2,3\n", "'a' twice"),
        ("a,b,c\n1,2,3\n", "columns there are: 'a', 'b', 'c'"),
        ("a,b,y\n1,2,11\n", "column 'y', row 0: 11"),
        ('a,b,y\n1,"2,3\n', "cannot be read as CSV"),
    ],
)
def test_csv_that_does_not_fit(tmp_path, vector_input, label, text, message):
    with pytest.raises(DataError, match=rf"data\.csv.*{message}"):
        open_source(write_csv(tmp_path, text), vector_input, label)


def test_csv_that_is_no_text(tmp_path, vector_input, label):
    (tmp_path / "data.csv").write_bytes(b"a,b,y\n\xff\xfe,1,2\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        open_source(str(tmp_path / "data.csv"), vector_input, label)


def digits(query, shape=(1, 8, 8)):
    label = [TensorSignature("y0", (), "int64", 10)]
    return open_source(f"digits:{query}", [TensorSignature("x0", shape, "float32")], label)


def test_digits_are_split_by_a_fixed_seed(gather):
    train, test = digits("?split=train"), digits("?split=test")
    assert (digits("").example_count(), train.example_count(), test.example_count()) == (
        1797,
        1438,
        359,
    )
    seen = {row.tobytes() for row in gather(train).inputs[0]}
    assert sum(row.tobytes() in seen for row in gather(test).inputs[0]) == 0
    batch = next(train.batches(32, 1))
    assert batch.inputs[0].dtype == np.float32
    assert 0.9 < batch.inputs[0].max() <= 1.0
    assert digits("", shape=(64,)).example_count() == 1797


@pytest.mark.parametrize("alpha", ["", "&alpha=0.5"])
def test_digits_in_parts_cover_the_whole(gather, alpha):
    parts = [digits(f"?split=train&part={i}&parts=4&seed=1{alpha}") for i in range(4)]
    rows = sorted(row.tobytes() for part in parts for row in gather(part).inputs[0])
    assert rows == sorted(row.tobytes() for row in gather(digits("?split=train")).inputs[0])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?split=half", "split=half must be all, train or test"),
        ("?part=4&parts=4", "part=4 must be below parts=4"),
        ("?colour=1", "unknown option 'colour'"),
        ("?alpha=0", "positive number"),
    ],
)
def test_digits_with_wrong_options(query, message):
    with pytest.raises(UsageError, match=message):
        digits(query)


def test_digits_have_one_input_and_one_target():
    with pytest.raises(UsageError, match="one input and one target"):
        open_source("digits:", [], [])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[digits\]'"):
        digits("")
