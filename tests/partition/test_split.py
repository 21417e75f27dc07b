import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from coordinator.data_command import data_group, histogram
from headwater.batch import TensorSignature
from headwater.errors import ConflictError, DataError, StorageError, UsageError
from headwater.partitioning import parquet_table, tables
from headwater.partitioning.split import SplitRequest, safe_names, split
from headwater.sources import open_source

COUNT = 500
NUMBERS = np.arange(COUNT)
LABELS = NUMBERS * 7 % 10
SITES = np.array(["north", "south/1", "south 1", ""])[NUMBERS % 4]


def write_npz(tmp_path):
    np.savez(tmp_path / "data.npz", x=NUMBERS.astype(np.float32), y=LABELS, site=SITES)
    return tmp_path / "data.npz"


def write_csv(tmp_path):
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "site"])
        writer.writerows(zip(NUMBERS, LABELS, SITES, strict=True))
    return tmp_path / "data.csv"


def write_parquet(tmp_path):
    table = pa.table(
        {"x": NUMBERS.astype(float), "y": LABELS, "site": SITES, "l": [[1, 2]] * COUNT}
    )
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=90)
    return tmp_path / "data.parquet"


def write_parquet_folder(tmp_path):
    source = write_parquet(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    table = pq.read_table(source)
    pq.write_table(table.slice(0, 200), folder / "part-0.parquet")
    pq.write_table(table.slice(200), folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    return folder


KINDS = [write_npz, write_csv, write_parquet, write_parquet_folder]
RULES = [
    {"rule": "iid", "parts": 4},
    {"rule": "dirichlet", "parts": 4, "alpha": 0.3},
    {"rule": "shards", "parts": 4},
    {"rule": "column", "column": "site"},
]


def rows_of(path):
    """The rows (their x) of a written file, as a client reads them; labels must belong to them."""
    source = open_source(
        f"{path}?input=x&target=y",
        [TensorSignature("x0", (), "float32")],
        [TensorSignature("y0", (), "int64", 10)],
    )
    (batch,) = source.batches(source.example_count(), None)
    np.testing.assert_array_equal(batch.targets[0], LABELS[batch.inputs[0].astype(int)])
    return batch.inputs[0].astype(int).tolist()


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rule"])
def test_every_example_goes_to_exactly_one_file(tmp_path, write, rule):
    request = SplitRequest(str(write(tmp_path)), tmp_path / "out", holdout=0.2, seed=3, **rule)
    report = split(request)
    files = {part.file: rows_of(request.output / part.file) for part in report.parts}
    files[report.holdout.file] = rows_of(request.output / report.holdout.file)
    assert sorted(path.name for path in request.output.iterdir()) == sorted(files)
    assert sorted(row for rows in files.values() for row in rows) == NUMBERS.tolist()
    assert all(rows == sorted(rows) for rows in files.values())
    for part in (*report.parts, report.holdout):
        assert part.examples == len(files[part.file]) == sum(part.labels.values())
    assert report.holdout.labels == {str(label): 10 for label in range(10)}
    assert len(report.parts) == 4

    again = SplitRequest(request.source, tmp_path / "again", holdout=0.2, seed=3, **rule)
    assert split(again) == report
    for name, rows in files.items():
        assert rows_of(again.output / name) == rows


@pytest.mark.parametrize("write", KINDS)
def test_the_decision_does_not_depend_on_the_kind_of_file(tmp_path, write):
    split(SplitRequest(str(write(tmp_path)), tmp_path / "a", "dirichlet", 3, seed=5))
    split(SplitRequest(str(write_npz(tmp_path)), tmp_path / "b", "dirichlet", 3, seed=5))
    (first,) = (tmp_path / "a").glob("part-00000.*")
    assert rows_of(first) == rows_of(tmp_path / "b" / "part-00000.npz")


def test_all_columns_and_types_survive(tmp_path):
    source = write_parquet(tmp_path)
    split(SplitRequest(str(source), tmp_path / "out", parts=3))
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())]
    whole = pa.concat_tables(parts).sort_by("x")
    assert whole.equals(pq.read_table(source))


def test_more_parts_than_open_files_and_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "OPEN_FILES", 3)
    monkeypatch.setattr(parquet_table, "HELD_BYTES", 1000)
    monkeypatch.setattr(parquet_table, "SLICE_ROWS", 40)
    for write in (write_parquet, write_csv):
        output = tmp_path / write.__name__
        split(SplitRequest(str(write(tmp_path)), output, parts=10))
        rows = [row for path in sorted(output.iterdir()) for row in rows_of(path)]
        assert sorted(rows) == NUMBERS.tolist()
    some = pq.ParquetFile(tmp_path / "write_parquet" / "part-00000.parquet")
    assert some.num_row_groups > 1
    some.close()


def test_digits_become_npz(tmp_path):
    report = split(SplitRequest("digits:?split=train", tmp_path, "dirichlet", 4, seed=1))
    assert [part.examples for part in report.parts] == [360, 360, 359, 359]
    with np.load(tmp_path / "part-00000.npz") as part:
        assert part["x"].dtype == np.float32
        assert part["x"].shape == (360, 1, 8, 8)
        assert 0 <= part["x"].min() < part["x"].max() <= 1
        assert part["y"].dtype == np.int64


def test_names_of_values_are_safe_and_distinct():
    assert safe_names(["north", "a/b", "a b", "A_B", "..", "", "é", "x" * 99]) == [
        "north", "a_b", "a_b-2", "A_B-3", "value", "value-2", "value-3", "x" * 80,
    ]  # fmt: skip


def test_earlier_parts_are_kept_unless_forced(tmp_path):
    source, output = write_npz(tmp_path), tmp_path / "out"
    split(SplitRequest(str(source), output, parts=5))
    (output / "notes.txt").touch()
    with pytest.raises(ConflictError, match=r"holds part-00000\.npz already; --force removes"):
        split(SplitRequest(str(source), output, parts=2))
    split(SplitRequest(str(source), output, parts=2, force=True))
    assert sorted(path.name for path in output.iterdir()) == [
        "notes.txt",
        "part-00000.npz",
        "part-00001.npz",
    ]


def test_the_source_is_never_removed(tmp_path):
    folder = write_parquet_folder(tmp_path)
    for source in (folder, folder / "part-0.parquet"):
        with pytest.raises(ConflictError, match="holds the source itself"):
            split(SplitRequest(str(source), folder, parts=2, force=True))
    assert (folder / "part-0.parquet").exists()


def test_a_failure_leaves_no_half_file(tmp_path):
    source = write_parquet(tmp_path)
    table = pq.read_table(source)
    pq.write_table(table, source, use_dictionary=False, write_page_checksum=True)
    data = bytearray(source.read_bytes())
    data[1000:1100] = bytes(100)
    source.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        split(SplitRequest(str(source), tmp_path / "out", parts=2, target="site"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the parts"):
        split(SplitRequest(str(write_npz(tmp_path)), tmp_path / "file" / "out", parts=2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "--by iid needs --parts"),
        ({"parts": 2, "column": "site"}, UsageError, "--column goes with --by column"),
        ({"rule": "column"}, UsageError, "--by column needs --column"),
        ({"rule": "column", "column": "site", "parts": 2}, UsageError, "no --parts"),
        ({"rule": "column", "column": "z"}, DataError, r"no column 'z' .*'x', 'y', 'site'"),
        ({"parts": 2, "target": "z"}, DataError, "no column 'z'"),
        ({"parts": 501}, UsageError, "500 examples cannot fill 501 parts"),
        ({"parts": 2, "holdout": 0.0001}, UsageError, "leaves one side empty"),
    ],
)
@pytest.mark.parametrize("write", KINDS[:3])
def test_wrong_requests(tmp_path, write, options, error, message):
    with pytest.raises(error, match=message):
        split(SplitRequest(str(write(tmp_path)), tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({"t": ["a", "b"]}, None, r"--by dirichlet needs labels: .*--target \(columns .* t\)"),
        ({"y": [1, None]}, None, r"column 'y', row 1: there is no value \(null\)"),
        ({"l": [[1], [2]]}, "l", "column 'l' holds list<.*>, not one label a row"),
        ({"y": pa.array([], pa.int64())}, None, "empty shard"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, columns, target, message):
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    request = SplitRequest(
        str(tmp_path / "data.parquet"), tmp_path / "out", "dirichlet", 2, target=target
    )
    with pytest.raises((DataError, UsageError), match=message):
        split(request)


def test_sources_that_cannot_be_split(tmp_path):
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    for source in (str(tmp_path / "pictures"), "s3:bucket"):
        with pytest.raises(UsageError, match=r"only .parquet, .npz, .csv and digits: can be split"):
            split(SplitRequest(source, tmp_path / "out", parts=2))
    with pytest.raises(UsageError, match="unknown option 'where'"):
        split(SplitRequest(f"{write_npz(tmp_path)}?where=y==1", tmp_path / "out", parts=2))
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 2)), y=np.float32(1))
    with pytest.raises(DataError, match="'y' is a single value"):
        split(SplitRequest(str(tmp_path / "odd.npz"), tmp_path / "out", parts=2))
    np.savez(tmp_path / "odd.npz", y=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"'y' holds values of shape \[2\], not one an example"):
        split(SplitRequest(str(tmp_path / "odd.npz"), tmp_path / "out", parts=2))


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(data_group, ["split", *map(str, arguments)])
    assert result.exception is None, result.output
    return result.output


def test_the_command_prints_the_histogram(tmp_path):
    lines = run(
        write_npz(tmp_path), "--parts", 2, "--holdout", 0.1, "-o", tmp_path / "o"
    ).splitlines()
    assert lines[0].split() == ["file", "examples", *map(str, range(10))]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["part-00000.npz", "225"],
        ["part-00001.npz", "225"],
        ["holdout.npz", "50"],
    ]


def test_the_command_prints_json(tmp_path):
    report = json.loads(
        run(
            write_npz(tmp_path),
            "--by",
            "column",
            "--column",
            "site",
            "-o",
            tmp_path / "o",
            "--json",
        )
    )
    assert report["holdout"] is None
    assert {part["file"] for part in report["parts"]} == {
        "part-value.npz",
        "part-north.npz",
        "part-south_1.npz",
        "part-south_1-2.npz",
    }


def test_many_labels_are_only_counted(tmp_path):
    report = split(SplitRequest(str(write_npz(tmp_path)), tmp_path / "o", parts=2, target="x"))
    assert histogram(report)[0].split() == ["file", "examples", "labels"]
    assert histogram(report)[1].split() == ["part-00000.npz", "250", "250"]
