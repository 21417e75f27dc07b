"""One input or target in a job file, with what becomes of the stored values before it."""
# ruff: noqa: RUF009  (`key` returns a dataclass field, which is what belongs there)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.jobs.builder import Fault
from coordinator.jobs.key import Pattern, key
from headwater.batch import TensorSignature
from headwater.preparation import FLIPS
from headwater.preparation import Image as ImagePreparation
from headwater.preparation import Text as TextPreparation

TENSOR_NAME = Pattern(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and underscores, no digit first")
_CHARACTER = Pattern(r"(?s).", "one character")
_CHARACTERS = Pattern(r"(?s).+", "at least one character")


@dataclass(frozen=True, kw_only=True)
class Image:
    """Images are decoded, resized to the shape and sent as bytes; the plan does the rest."""

    mean: tuple[float, ...] = key(
        "Subtracted from pixels in 0 to 1, a number for each channel.",
        value=(),
        minimum=0,
        maximum=1,
        default="nothing",
    )
    standard_deviation: tuple[float, ...] = key(
        "What pixels are then divided by, a number for each channel.",
        value=(),
        above=0,
        default="nothing",
    )
    flip: str | None = key(
        "In training, mirrors each example with probability one half.",
        value=None,
        choices=FLIPS,
        default="not flipped",
    )
    crop_padding: int = key(
        "In training, cuts each example at a random place out of the image with so many black "
        "pixels around it.",
        value=0,
        minimum=0,
    )

    @property
    def preparation(self) -> ImagePreparation:
        """What the plan says."""
        return ImagePreparation(self.mean, self.standard_deviation, self.flip, self.crop_padding)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Texts become their characters' numbers, which are places in a table."""

    characters: str = key("The table, each character once.", pattern=_CHARACTERS)
    unknown: str | None = key(
        "The character of the table that stands for those that are not in it.",
        value=None,
        pattern=_CHARACTER,
        default="such texts are refused",
    )
    padding: str | None = key(
        "The character of the table that fills texts that are too short; longer ones are cut off.",
        value=None,
        pattern=_CHARACTER,
        default="such texts are refused",
    )
    skip: int = key(
        "Characters left out at the beginning: 1 in a target that is the next character.",
        value=0,
        minimum=0,
    )

    @property
    def preparation(self) -> TextPreparation:
        """What the plan says."""
        return TextPreparation(self.characters, self.unknown, self.padding, self.skip)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or target of the model."""

    shape: tuple[int, ...] = key(
        "The dimensions of one example, without the batch; `[]` for one number.", minimum=1
    )
    dtype: str = key("The type of its elements.", choices=("float32", "int64"))
    name: str | None = key(
        "The name that data sources know it by.",
        value=None,
        pattern=TENSOR_NAME,
        default="`x` and `y`; `x0`, `x1`, … and `y0`, `y1`, … where there are several",
    )
    maximum: int | None = key(
        "For int64: values lie in 0 ≤ value < maximum (tokens, classes).",
        value=None,
        minimum=1,
        default="the number of characters or labels, else unbounded; classes follow from the "
        "model's output",
    )
    image: Image | None = key(
        "For a float32 input [channels, height, width]: how images become it.",
        value=None,
        default="values are taken as they are stored",
    )
    text: Text | None = key(
        "For int64 [characters]: how texts become it.",
        value=None,
        default="values are taken as they are stored",
    )
    labels: tuple[str, ...] | None = key(
        "For int64: names of classes, in the order of their numbers. Stored names become numbers.",
        value=None,
        check=lambda labels: None if labels else "at least one label",
        default="values are taken as they are stored",
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        if self.maximum is not None and self.dtype != "int64":
            yield Fault(("maximum",), "only where dtype is int64")
            return
        kinds = {"image": self.image, "text": self.text, "labels": self.labels}
        given = [kind for kind, value in kinds.items() if value is not None]
        if len(given) > 1:
            yield Fault((given[1],), f"only one of {', '.join(kinds)} is allowed")
        elif given:
            dtype = "float32" if self.image else "int64"
            fault = self.signature("").fault()
            if self.dtype != dtype:
                yield Fault((given[0],), f"only where dtype is {dtype}")
            elif fault:
                yield Fault((given[0],), fault)

    def signature(self, name: str) -> TensorSignature:
        """What batches hold for it, under this name where it has none of its own."""
        labels = self.labels or ()
        known = self.text.characters if self.text else labels
        return TensorSignature(
            self.name or name,
            self.shape,
            "uint8" if self.image else self.dtype,
            self.maximum or len(known) or None,
            self.image.preparation if self.image else None,
            self.text.preparation if self.text else None,
            labels,
        )


def signatures(letter: str, tensors: Sequence[Tensor]) -> tuple[TensorSignature, ...]:
    """The tensors' signatures; those without a name are called by the letter and their number."""
    names = [letter] if len(tensors) == 1 else [f"{letter}{n}" for n in range(len(tensors))]
    return tuple(one.signature(name) for one, name in zip(tensors, names, strict=True))
