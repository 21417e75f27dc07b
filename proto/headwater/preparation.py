"""How stored values become a model's: pixels, characters and class names, declared by the plan.

What a device does with a file (decode and resize an image, look characters and names up in a table)
is done by its data source. What is arithmetic (scaling pixels, normalization, augmentation) is part
of the plan's graphs, so that every runtime computes it alike; sources hand over bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHANNELS = (1, 3, 4)
"""Grey, RGB and RGBA."""

FLIPS = ("horizontal",)

MAXIMUM_CHARACTERS = 65_536
MAXIMUM_LABELS = 100_000


@dataclass(frozen=True)
class Image:
    """Images as uint8 [channels, height, width], whose arithmetic the plan's graphs do.

    A pixel v becomes `(v / 255 - mean) / standard_deviation` by channel; both are empty where
    pixels stay in 0 to 1. Only in training, each example is flipped with probability one half where
    `flip` is set, and a window of the image's size is cut at a random place out of the image with
    `crop_padding` black pixels around it (He, Zhang, Ren, Sun, "Deep residual learning for image
    recognition", CVPR 2016, section 4.2).
    """

    mean: tuple[float, ...] = ()
    standard_deviation: tuple[float, ...] = ()
    flip: str | None = None
    crop_padding: int = 0

    @property
    def is_augmented(self) -> bool:
        """Whether training draws random numbers for it."""
        return self.flip is not None or self.crop_padding > 0

    def fault(self, shape: Sequence[int]) -> str:
        """What is wrong with it for images of this shape; empty where nothing is."""
        if len(shape) != 3 or shape[0] not in CHANNELS:
            return (
                f"images have the shape [channels, height, width] with 1, 3 or 4 channels, not "
                f"{list(shape)}"
            )
        for name, values in (("mean", self.mean), ("standard_deviation", self.standard_deviation)):
            if values and len(values) != shape[0]:
                return f"{name} has {len(values)} values for {shape[0]} channels"
        if not all(map(math.isfinite, (*self.mean, *self.standard_deviation))):
            return "mean and standard_deviation are finite numbers"
        if min(self.standard_deviation, default=1.0) <= 0:
            return "standard_deviation is above 0"
        if self.flip is not None and self.flip not in FLIPS:
            return f"flip is one of {', '.join(FLIPS)}"
        if not 0 <= self.crop_padding < min(shape[1:]):
            return (
                f"crop_padding is {self.crop_padding}; it must be less than the height and the "
                f"width ({shape[1]} and {shape[2]}), or a window could miss the image"
            )
        return ""


@dataclass(frozen=True)
class Text:
    """Texts as numbers: a character's number is its place in `characters`.

    `unknown` is the character of the table that stands for those that are not in it, and `padding`
    the one that fills a text that is too short; without them such texts are refused. The first
    `skip` characters are left out, and what is longer than the tensor is cut off: with one column
    of n + 1 characters, an input of n and a target of n with `skip = 1` predict the next character.
    """

    characters: str
    unknown: str | None = None
    padding: str | None = None
    skip: int = 0

    def fault(self, shape: Sequence[int]) -> str:
        """What is wrong with it for a tensor of this shape; empty where nothing is."""
        if len(shape) != 1:
            return f"a text has the shape [characters], not {list(shape)}"
        if not 0 < len(self.characters) <= MAXIMUM_CHARACTERS:
            return f"characters holds {len(self.characters)}; from 1 to {MAXIMUM_CHARACTERS} can be"
        double = first_double(self.characters)
        if double is not None:
            return f"characters holds {double!r} twice"
        for name, value in (("unknown", self.unknown), ("padding", self.padding)):
            if value is not None and (len(value) != 1 or value not in self.characters):
                return f"{name} = {value!r} is not one character of the table"
        return "skip is below 0" if self.skip < 0 else ""


def labels_fault(labels: Sequence[str]) -> str:
    """What is wrong with the names of classes; empty where nothing is."""
    if not 0 < len(labels) <= MAXIMUM_LABELS:
        return f"{len(labels)} labels; from 1 to {MAXIMUM_LABELS} can be"
    if not all(labels):
        return "a label is empty"
    double = first_double(labels)
    return "" if double is None else f"labels holds {double!r} twice"


def first_double(values: Sequence[str]) -> str | None:
    """The first value that was there before, or None."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
