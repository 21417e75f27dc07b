"""A folder of images with one folder for each class.

Labels: the names' places in the plan's labels or in the option `classes=`; without these the names
themselves where all are whole numbers, otherwise their places in sorted order. A client rarely has
every class, and sorted positions would then differ between clients; so then the folder must have as
many classes as the model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.batch import Array, Batch, TensorSignature
from headwater.errors import DataError
from headwater.sources.binding import (
    Binding,
    check_options,
    flag_option,
    memory_bytes,
    names_option,
)
from headwater.sources.columns import scale_option
from headwater.sources.fields import Chunk, Field, Fields, Origin, refuse_empty
from headwater.sources.images import ImageDecoder
from headwater.sources.order import ArraySource, check_batch_size, example_order
from headwater.sources.text import label_number

OPTIONS = ("classes", "memory_mib", "resize", "scale")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def class_folders(path: str) -> tuple[Path, ...]:
    """The folders in a folder, by name, without hidden ones."""
    folders = (entry for entry in Path(path).iterdir() if entry.is_dir() and entry.name[0] != ".")
    return tuple(sorted(folders))


def class_labels(
    path: str, names: Sequence[str], classes: Sequence[str] | None, target: TensorSignature
) -> dict[str, int]:
    """The label of each class folder by the rule above.

    Raises:
        DataError: a folder is not among the labels or `classes`, or the labels cannot be told.
    """
    maximum = target.maximum
    if classes is None and target.labels:
        return _declared(path, names, target.labels)
    if classes is not None:
        for name in names:
            if name not in classes:
                raise DataError(
                    f"{path}: class folder {name!r} is not in classes={','.join(classes)}"
                )
        return {name: classes.index(name) for name in names}
    if all(name.isascii() and name.isdigit() for name in names):
        return {name: int(name) for name in names}
    if maximum is not None and len(names) != maximum:
        raise DataError(
            f"{path}: {len(names)} class folders ({', '.join(names[:5])}…), the model has {maximum}"
            " classes: give all of them in the model's order with ?classes=FIRST,SECOND,…"
        )
    return {name: index for index, name in enumerate(sorted(names))}


def _declared(path: str, names: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    known = {name: number for number, name in enumerate(labels)}
    numbers = {name: label_number(known, name) for name in names}
    strange = [name for name, number in numbers.items() if number is None]
    if strange:
        raise DataError(
            f"{path}: class folder {strange[0]!r} is not one of the plan's labels "
            f"({', '.join(labels[:10])}{', …' if len(labels) > 10 else ''})"
        )
    return {name: number for name, number in numbers.items() if number is not None}


class FolderSource:
    """Image files by class, decoded once and kept where they fit, otherwise with each batch."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        labels: Array,
        fields: Fields,
        decoder: ImageDecoder,
        budget: int,
    ) -> None:
        self.name = name
        self._files = files
        self._labels = labels
        self._fields = fields
        self._decoder = decoder
        self._fits = len(files) * int(np.prod(decoder.shape)) <= budget
        self._kept: ArraySource | None = None

    def example_count(self) -> int:
        """The number of image files."""
        return len(self._files)

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """One pass over the examples; see `DataSource`."""
        check_batch_size(batch_size)
        if self._fits:
            if self._kept is None:
                everything = self._chunk(example_order(len(self._files), None))
                self._kept = ArraySource(self.name, self._fields, everything)
            yield from self._kept.batches(batch_size, seed)
            return
        order = example_order(len(self._files), seed)
        for start in range(0, len(order), batch_size):
            yield self._fields.batch(self._chunk(order[start : start + batch_size]))

    def _chunk(self, rows: NDArray[np.int64]) -> Chunk:
        pixels = np.empty((len(rows), *self._decoder.shape), np.uint8)
        for position, row in enumerate(rows):
            pixels[position] = read_image(self._files[row], self._decoder)
        return pixels, self._labels[rows]


def read_image(file: Path, decoder: ImageDecoder) -> NDArray[np.uint8]:
    """Decode one image file.

    Raises:
        DataError: it cannot be read or decoded; names the file.
    """
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    return decoder.decode(encoded, lambda problem: DataError(f"{file}: {problem}"))


def open_folder_source(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> FolderSource:
    """List the images of a folder by class and decode the first."""
    check_options(binding, OPTIONS)
    path = binding.path
    if len(inputs) != 1 or len(targets) != 1:
        raise DataError(
            f"{path}: a folder of images has one input and one target, the model has "
            f"{len(inputs)} and {len(targets)}"
        )
    folders = class_folders(path)
    names = [folder.name for folder in folders]
    labels = class_labels(path, names, names_option(binding, "classes"), targets[0])
    pairs = [
        (file, labels[folder.name])
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in ENDINGS and file.name[0] != "."
    ]
    refuse_empty(path, len(pairs))
    decoder = ImageDecoder(inputs[0], resize=flag_option(binding, "resize"))
    read_image(pairs[0][0], decoder)
    target = Field(targets[0], ("label",))
    scale = scale_option(binding, inputs)
    numbers = target.compact(np.array([label for _, label in pairs], np.int64), Origin(path))
    fields = Fields((Field(inputs[0], ("image",), scale),), (target,))
    files = [file for file, _ in pairs]
    return FolderSource(path, files, numbers, fields, decoder, memory_bytes(binding))
