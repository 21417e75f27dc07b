import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.batch import TensorSignature
from headwater.errors import DataError, MissingExtraError, UsageError
from headwater.sources import open_source

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"
SCALAR = [TensorSignature("x0", (), "float32")]
NO_TARGET: list[TensorSignature] = []


def images(encoded, field_type=None):
    kind = field_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if pa.types.is_struct(kind):
        encoded = [None if data is None else {"bytes": data, "path": None} for data in encoded]
    return pa.array(encoded, kind)


@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary()])
def test_encoded_images_are_decoded(write_parquet, picture, image_input, label, gather, kind):
    path = write_parquet(img=images([picture(i) for i in range(5)], kind), label=list(range(5)))
    batch = gather(open_source(path, image_input, label))
    pixels = np.stack(
        [np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8) for i in range(5)]
    )
    expected = np.float32(pixels.transpose(0, 3, 1, 2)) / np.float32(255)
    np.testing.assert_array_equal(batch.inputs[0], expected)
    np.testing.assert_array_equal(batch.targets[0], range(5))


@pytest.mark.parametrize(
    ("shape", "mode"), [((1, 4, 5), "L"), ((4, 5), "L"), ((6, 5, 3), "RGB"), ((4, 4, 5), "RGBA")]
)
def test_images_take_the_model_s_layout(write_parquet, picture, label, gather, shape, mode):
    height = 6 if shape[0] == 6 else 4
    path = write_parquet(img=images([picture(3, mode=mode, height=height)]), label=[0])
    batch = gather(open_source(path, [TensorSignature("x0", shape, "float32")], label))
    assert batch.inputs[0].shape == (1, *shape)


def test_integer_inputs_take_pixels_as_they_are(write_parquet, picture, label, gather):
    path = write_parquet(img=images([picture(3, height=6)]), label=[0])
    batch = gather(open_source(path, [TensorSignature("x0", (6, 5, 3), "uint8")], label))
    pixels = np.random.default_rng(3).integers(0, 256, (6, 5, 3), np.uint8)
    np.testing.assert_array_equal(batch.inputs[0][0], pixels)


def test_images_of_another_size_are_resized_on_request(write_parquet, picture, image_input, label):
    path = write_parquet(img=images([picture(0), picture(0, height=9)]), label=[0, 1])
    assert open_source(f"{path}?resize=true", image_input, label).example_count() == 2
    with pytest.raises(DataError, match="row 1: the image is 5×9 pixels, the model wants 5×4; add"):
        list(open_source(path, image_input, label).batches(2, None))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no image", "8 bytes cannot be decoded as an image .not in an image format"),
        (None, "there are no image bytes"),
        ("truncated", "cannot be decoded as an image"),
    ],
)
def test_undecodable_images(write_parquet, picture, image_input, label, data, message):
    bad = picture(1, 4, 5)[:60] if data == "truncated" else data
    path = write_parquet(img=images([picture(0), bad]), label=[0, 1])
    with pytest.raises(DataError, match=f"column 'img', row 1: .*{message}"):
        list(open_source(path, image_input, label).batches(2, None))


def test_images_cannot_fill_a_vector(write_parquet, picture, vector_input, label):
    path = write_parquet(img=images([picture(0)]), label=[0])
    with pytest.raises(DataError, match=r"images cannot fill 'x0' of the model with shape \[2\]"):
        open_source(path, vector_input, label)


def test_without_pillow(write_parquet, picture, image_input, label, monkeypatch):
    path = write_parquet(img=images([picture(0)]), label=[0])
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[images\]'"):
        open_source(path, image_input, label)


def test_without_pyarrow(write_parquet, vector_input, label, monkeypatch):
    path = write_parquet(x=[1.0], y=[0])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[parquet\]'"):
        open_source(path, vector_input, label)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.int32()),
        pa.list_(pa.float32(), 2),
        pa.list_(pa.list_(pa.int8())),
    ],
)
def test_lists_fill_vectors(write_parquet, vector_input, label, gather, kind):
    nested = pa.types.is_list(kind) and pa.types.is_list(kind.value_type)
    values = [[[1], [2]], [[3], [4]]] if nested else [[1, 2], [3, 4]]
    path = write_parquet(x=pa.array(values, kind), y=[1, 2])
    np.testing.assert_array_equal(
        gather(open_source(path, vector_input, label)).inputs[0], [[1, 2], [3, 4]]
    )


def test_columns_of_numbers_fill_a_vector(write_parquet, vector_input, label, gather):
    path = write_parquet(
        a=pa.array([1, 2]).dictionary_encode(), b=[True, False], y=pa.array([3, 4], pa.int8())
    )
    batch = gather(open_source(f"{path}?input=a,b", vector_input, label))
    np.testing.assert_array_equal(batch.inputs[0], [[1, 1], [2, 0]])


@pytest.mark.parametrize(
    ("columns", "query", "message"),
    [
        (
            {"x": [[1.0, 2.0], [1.0]], "y": [0, 1]},
            "",
            "column 'x', row 1: a list of 1 values where",
        ),
        ({"x": [[1.0, 2.0], None], "y": [0, 1]}, "", "column 'x', row 1: there is no value"),
        ({"x": [[1.0, 2.0], [1.0, None]], "y": [0, 1]}, "", "column 'x', row 1: there is no value"),
        ({"x": [[1.0, 2.0], [1.0, np.nan]], "y": [0, 1]}, "", "column 'x', row 1: nan"),
        ({"x": ["a", "b"], "y": [0, 1]}, "", "column 'x' holds string values, which are no num"),
        ({"x": [[1.0, 2.0]] * 2, "y": [0, 99]}, "", "column 'y', row 1: 99 is out of range"),
        ({"x": [[1.0, 2.0]] * 2, "y": [0.5, 1]}, "", "column 'y', row 0: 0.5 is not an integer"),
        ({"x": [[1.0, 2.0]] * 2, "y": [0, None]}, "", "column 'y', row 1: there is no value"),
        ({"a": [1], "b": [2]}, "", "columns there are: 'a', 'b'"),
        ({"x": [[1.0]], "z": [1.0], "y": [1]}, "?input=x,z", "column 'x' holds lists"),
        ({"x": pa.array([], pa.float32()), "y": pa.array([], pa.int64())}, "", "empty shard"),
    ],
)
def test_parquet_that_does_not_fit(write_parquet, vector_input, label, columns, query, message):
    path = write_parquet(**columns)
    with pytest.raises(DataError, match=rf"data\.parquet: .*{message}"):
        list(open_source(path + query, vector_input, label).batches(2, None))


def test_shapes_are_checked_when_it_is_opened(write_parquet, vector_input, label):
    path = write_parquet(x=[[1.0, 2.0, 3.0]], y=[0])
    with pytest.raises(DataError, match=r"shape \[3\] for each example"):
        open_source(path, vector_input, label)


@pytest.mark.parametrize("kept", [0, 100, 0.9])
def test_a_truncated_file(write_parquet, vector_input, label, kept):
    path = Path(write_parquet(x=[[1.0, 2.0]] * 500, y=[0] * 500))
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(len(data) * kept)])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(str(path), vector_input, label)


def test_damaged_pages(tmp_path, label):
    path = tmp_path / "data.parquet"
    table = pa.table({"x": np.random.default_rng(0).normal(size=5000), "y": [0] * 5000})
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[2000:2200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(open_source(str(path), SCALAR, label).batches(100, None))


def test_row_groups_that_the_condition_excludes_are_not_read(tmp_path, gather):
    path = tmp_path / "data.parquet"
    table = pa.table({"x": np.arange(5000.0)})
    pq.write_table(table, path, 500, use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[1000:1200] = bytes(200)
    path.write_bytes(data)
    source = open_source(f"{path}?where=x>=4100", SCALAR, NO_TARGET)
    assert gather(source).inputs[0].tolist() == list(range(4100, 5000))


def test_two_columns_of_one_name(tmp_path):
    pq.write_table(pa.table([[1.0], [2.0]], names=["x", "x"]), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="there are two columns 'x'"):
        open_source(str(tmp_path / "data.parquet"), SCALAR, NO_TARGET)


def test_a_folder_as_spark_writes_it(write_parquet, tmp_path, label, gather):
    for part in range(3):
        write_parquet(f"out.parquet/part-{part}.snappy.parquet", x=[part, part + 0.5], y=[part] * 2)
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc", "_metadata.parquet"):
        (tmp_path / "out.parquet" / name).write_bytes(b"")
    source = open_source(str(tmp_path / "out.parquet"), SCALAR, label)
    assert source.example_count() == 6
    np.testing.assert_array_equal(gather(source).inputs[0], [0, 0.5, 1, 1.5, 2, 2.5])


def test_a_file_of_a_folder_with_other_columns(write_parquet, tmp_path, label):
    write_parquet("out/a.parquet", x=[1.0], y=[1])
    write_parquet("out/b.parquet", z=[1.0], y=[1])
    with pytest.raises(DataError, match=r"b\.parquet: there is no column 'x' .*'z', 'y'"):
        open_source(str(tmp_path / "out"), SCALAR, label)


@pytest.fixture
def numbered(write_parquet) -> str:
    """1,000 rows whose x is the row and whose y is its last digit, in groups of 90."""
    n = np.arange(1000)
    split = np.where(n < 800, "train", "test")
    return write_parquet(x=n.astype(float), y=n % 10, split=split, row_group_size=90)


FILTERS = {
    "y>=3": lambda n: n % 10 >= 3,
    "y>=3 and split=='train'": lambda n: (n % 10 >= 3) & (n < 800),
    "not (y == 1 or y == 2)": lambda n: ~np.isin(n % 10, [1, 2]),
    "y in (1, 2) and x < 500.5": lambda n: np.isin(n % 10, [1, 2]) & (n < 500.5),
    "y not in [1, 2]": lambda n: ~np.isin(n % 10, [1, 2]),
    "100 <= x < 200": lambda n: (n >= 100) & (n < 200),
    "x > -5 and 990 < x": lambda n: n > 990,
}


@pytest.mark.parametrize("memory", ["", "&memory_mib=0.0005"])
@pytest.mark.parametrize("where", FILTERS)
def test_filters_count_and_take_the_same_rows(numbered, label, gather, where, memory):
    n = np.arange(1000)
    expected = n[FILTERS[where](n)]
    source = open_source(f"{numbered}?where={where}{memory}", SCALAR, label)
    assert source.example_count() == len(expected)
    np.testing.assert_array_equal(gather(source).inputs[0], expected)
    np.testing.assert_array_equal(np.sort(gather(source, seed=5).inputs[0]), expected)


def test_errors_after_a_filter_name_the_row_of_the_file(write_parquet, label):
    path = write_parquet(x=[0.0, 1, 2, np.nan, 4], y=[0, 1, 0, 1, 1], row_group_size=2)
    with pytest.raises(DataError, match="column 'x', row 3: nan"):
        list(open_source(f"{path}?where=y==1", SCALAR, label).batches(2, None))


def test_missing_values_are_not_taken(write_parquet, gather):
    path = write_parquet(x=[0.0, 1, 2], k=pa.array([None, 1, 2]))
    for where in ("k!=1", "k not in (1,)", "not k==1"):
        source = open_source(f"{path}?where={where}", SCALAR, NO_TARGET)
        assert gather(source).inputs[0].tolist() == [2.0]


@pytest.mark.parametrize(
    "where",
    ["y", "y ==", "__import__('os')", "y.real == 1", "y == 1 + 1", "1 == 1", "y is None", "y in ()",
     "y == -'a'", "y < 99999999999999999999", "f(y) == 1", "y == x'", "lambda: 0"],
)  # fmt: skip
def test_conditions_that_are_refused(numbered, label, where):
    with pytest.raises(UsageError, match=r"where=.*allowed: column names"):
        open_source(f"{numbered}?where={where}", SCALAR, label)


def test_conditions_on_what_is_not_there(numbered, label):
    with pytest.raises(DataError, match=r"no column 'z' .*'x', 'y', 'split'"):
        open_source(f"{numbered}?where=z==1", SCALAR, label)
    with pytest.raises(DataError, match="where=y=='a' cannot be applied to the columns"):
        open_source(f"{numbered}?where=y=='a'", SCALAR, label)
    with pytest.raises(DataError, match="empty shard"):
        open_source(f"{numbered}?where=y>100", SCALAR, label)


@pytest.mark.parametrize("memory", ["", "?memory_mib=0.002"])
def test_every_example_once_in_the_seed_s_order(numbered, label, gather, memory):
    source = open_source(numbered + memory, SCALAR, label)
    np.testing.assert_array_equal(gather(source).inputs[0], np.arange(1000))
    one, again, other = (gather(source, seed=seed).inputs[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    np.testing.assert_array_equal(np.sort(one), np.arange(1000))
    reopened = open_source(numbered + memory, SCALAR, label)
    np.testing.assert_array_equal(gather(reopened, seed=1).inputs[0], one)


@pytest.mark.parametrize("row_group_size", [500, 20000])
def test_memory_stays_within_the_budget(tmp_path, label, row_group_size):
    """60 MB of examples through a budget of 4 MiB, even where one row group is larger than it."""
    path = tmp_path / "large.parquet"
    schema = pa.schema([("x", pa.list_(pa.uint8(), 3072)), ("y", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        generator = np.random.default_rng(0)
        for _ in range(20000 // row_group_size):
            flat = pa.array(generator.integers(0, 256, row_group_size * 3072, np.uint8))
            x = pa.FixedSizeListArray.from_arrays(flat, 3072)
            writer.write_table(
                pa.table([x, pa.array([1] * row_group_size)], schema), row_group_size
            )
    del flat, x
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        source = open_source(
            f"{path}?memory_mib=4", [TensorSignature("x0", (3, 32, 32), "float32")], label
        )
        assert sum(batch.size for batch in source.batches(32, 1)) == 20000
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    # The pool, a slice arriving, a slice leaving, a batch of float32; and what Arrow buffers.
    assert held < 8 * 2**20
    assert pool.max_memory() < 12 * 2**20


def test_cifar10(gather, label):
    path = SHARED / "test.parquet"
    if not path.exists():
        pytest.skip("the real data set is not beside this checkout: ../shared/data/cifar10")
    inputs = [TensorSignature("x0", (3, 32, 32), "float32")]
    source = open_source(f"{path}?where=label==3", inputs, label)
    assert source.example_count() == 1000
    batch = gather(source, 64, 1)
    assert batch.inputs[0].shape == (1000, 3, 32, 32)
    assert 0.3 < batch.inputs[0].mean() < 0.7
    assert set(batch.targets[0]) == {3}
