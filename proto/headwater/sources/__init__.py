"""Data sources: the examples that a client trains on and that a coordinator holds out.

A source is opened from a binding, which both sides take as `NAME=PATH[?key=value&…]`; jobs know
only the name, so that a path never travels. The kind is told by the path:

- `FILE.parquet`, or a folder of such files: `headwater.sources.parquet`
- `FILE.npz`: `headwater.sources.npz`
- `FILE.csv`: `headwater.sources.csv_table`
- a folder with a folder of images for each class: `headwater.sources.folder`
- `digits:`: `headwater.sources.digits`
- `SCHEME:…`: an entry point SCHEME of the group `headwater.sources`, one's own kind
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from headwater.batch import Batch, TensorSignature
from headwater.errors import DataError, HeadwaterError, UsageError
from headwater.sources.binding import Binding, parse_binding, split_binding

__all__ = ["DataSource", "SourceFactory", "open_source", "parse_binding"]

ENTRY_POINTS = "headwater.sources"


class DataSource(Protocol):
    """Examples that can be passed over again and again."""

    name: str
    """What was bound, as messages and logs name it."""

    def example_count(self) -> int:
        """The exact number of examples of one pass, at least 1."""
        ...

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """One pass: every example once, `batch_size` in a batch, the last batch smaller.

        The same seed gives the same order, another seed another one, None the stored order. Arrays
        have the plan's signatures and are the caller's to keep or change.

        Raises:
            DataError: a value that is read now cannot be used; names file, column and row.
        """
        ...


SourceFactory = Callable[
    [str, Mapping[str, str], Sequence[TensorSignature], Sequence[TensorSignature]], DataSource
]
"""One's own kind: (path after `SCHEME:`, options, inputs, targets) to a source."""

_Opener = Callable[[Binding, Sequence[TensorSignature], Sequence[TensorSignature]], DataSource]

_KINDS = {
    ".parquet": ("parquet", "open_parquet_source"),
    ".npz": ("npz", "open_npz_source"),
    ".csv": ("csv_table", "open_csv_source"),
    "folder": ("folder", "open_folder_source"),
    "digits": ("digits", "open_digits_source"),
}


def open_source(
    binding: str, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> DataSource:
    """Open the data that a binding (the part after `NAME=`) names, for a plan's signatures.

    Columns, counts and the first example are checked now; data held in memory is checked whole,
    streamed data as it is read.

    Raises:
        UsageError: the binding or one of its options is wrong.
        DataError: the data is missing, unreadable, empty, or does not fit the signatures.
        MissingExtraError: the kind needs an optional package; names the extra.
    """
    parts = split_binding(binding)
    if parts.scheme is not None and parts.scheme != "digits":
        return _own_kind(parts, inputs, targets)
    try:
        module, opener = _KINDS[parts.scheme or source_kind(parts.path)]
        open_kind = getattr(import_module(f"headwater.sources.{module}"), opener)
        return cast(_Opener, open_kind)(parts, inputs, targets)
    except OSError as error:
        raise DataError(f"{parts.path}: cannot be read ({error.strerror or error})") from error


def source_kind(path: str) -> str:
    """The kind of a file or folder: `.parquet`, `.npz`, `.csv` or `folder`.

    Raises:
        DataError: it does not exist, or is of no kind that is read.
    """
    location = Path(path)
    ending = location.suffix.lower()
    if location.is_dir():
        return _folder_kind(location)
    if not location.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if ending not in (".parquet", ".npz", ".csv"):
        raise DataError(
            f"{path}: cannot tell the kind of data by the ending {ending!r}: .parquet, .npz, .csv, "
            "a folder of Parquet files, or a folder with a folder of images for each class"
        )
    return ending


def _folder_kind(folder: Path) -> str:
    entries = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]
    if any(entry.suffix == ".parquet" for entry in entries):
        return ".parquet"
    folders = [entry for entry in entries if entry.is_dir()]
    if any("=" in entry.name and any(entry.glob("**/*.parquet")) for entry in folders):
        raise DataError(
            f"{folder}: folders for column values ({folders[0].name}) are not read: bind one of "
            "them, or write the files without partitionBy"
        )
    if folders:
        return "folder"
    raise DataError(
        f"{folder}: empty shard: neither .parquet files nor folders of images are in this folder"
    )


def _own_kind(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> DataSource:
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if binding.scheme not in found:
        known = ", ".join(f"{name}:" for name in sorted({"digits", *found}))
        raise UsageError(
            f"{binding.text}: there is no file or folder of this name, and no data source "
            f"{binding.scheme!r} is installed (there are: {known})"
        )
    point = found[binding.scheme]
    try:
        factory = cast(SourceFactory, point.load())
        return factory(binding.path, binding.options, inputs, targets)
    except HeadwaterError:
        raise
    except Exception as error:
        raise DataError(
            f"{binding.text}: the data source {point.value} failed: {type(error).__name__}: {error}"
        ) from error
