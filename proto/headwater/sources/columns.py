"""Which stored columns fill which tensors of the model: a pure choice by name."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from headwater.batch import TensorSignature
from headwater.errors import DataError, UsageError
from headwater.sources.binding import Binding, names_option, positive_option
from headwater.sources.fields import Field, Fields

INPUT_NAMES = ("x", "input", "inputs", "features", "image", "images", "img", "pixels", "text")
TARGET_NAMES = ("y", "target", "targets", "label", "labels")
TEXT_NAME = "text"
"""Also for a target that is a text: the column that the input takes, moved on by a character."""

COLUMN_OPTIONS = ("input", "target", "scale")


def choose_columns(
    path: str,
    available: Sequence[str],
    requested: Sequence[str] | None,
    signatures: Sequence[TensorSignature],
    option: Literal["input", "target"],
) -> tuple[tuple[str, ...], ...]:
    """The columns of each tensor.

    Requested columns are taken in order: as many as there are tensors, one each; several for one
    tensor are its features. Without a request a tensor takes the column of its own name, and a
    single tensor otherwise the first column with a usual name (`INPUT_NAMES`, `TARGET_NAMES`). The
    examples' weights are never requested: they take the column of their name.

    Raises:
        DataError: a column does not exist or none can be told; lists the columns that there are.
    """
    if signatures and signatures[-1].is_weight:
        named = choose_columns(path, available, requested, signatures[:-1], option)
        return (*named, _weight_column(path, available, signatures[-1].name))
    if requested is not None:
        return _requested(path, available, requested, signatures, option)
    usual = INPUT_NAMES if option == "input" else TARGET_NAMES
    chosen = []
    for signature in signatures:
        usual = (*usual, TEXT_NAME) if signature.text and option == "target" else usual
        candidates = (signature.name, *(usual if len(signatures) == 1 else ()))
        found = next((name for name in candidates if name in available), None)
        if found is None:
            raise DataError(
                f"{path}: cannot tell which column is the {option} {signature.name!r} of the model;"
                f" name it with ?{option}=COLUMN ({listed(available)})"
            )
        chosen.append((found,))
    return tuple(chosen)


def _weight_column(path: str, available: Sequence[str], name: str) -> tuple[str]:
    if name not in available:
        raise DataError(
            f"{path}: there is no column {name!r}, which holds the examples' weights "
            f"({listed(available)})"
        )
    return (name,)


def _requested(
    path: str,
    available: Sequence[str],
    requested: Sequence[str],
    signatures: Sequence[TensorSignature],
    option: str,
) -> tuple[tuple[str, ...], ...]:
    for name in requested:
        if name not in available:
            raise DataError(f"{path}: there is no column {name!r} ({listed(available)})")
    if len(requested) == len(signatures):
        return tuple((name,) for name in requested)
    if len(signatures) == 1:
        return (tuple(requested),)
    wanted = ", ".join(signature.name for signature in signatures) or "none"
    raise DataError(
        f"{path}: {option}={','.join(requested)} names {len(requested)} columns, the model has "
        f"{len(signatures)} {option}s ({wanted})"
    )


def scale_option(binding: Binding, inputs: Sequence[TensorSignature]) -> Fraction | None:
    """The option `scale`, or None where it is absent.

    Raises:
        UsageError: it is no positive number, or the plan scales the images itself.
    """
    scale = positive_option(binding, "scale")
    image = next((one.name for one in inputs if one.image is not None), None)
    if scale is not None and image is not None:
        raise UsageError(
            f"{binding.text}: option scale: the plan itself scales the images of {image!r}; leave "
            "the option out"
        )
    return scale


def listed(available: Sequence[str]) -> str:
    """The columns that there are, for a message."""
    shown = ", ".join(repr(name) for name in available[:20])
    more = f" and {len(available) - 20} more" if len(available) > 20 else ""
    return f"columns there are: {shown or 'none'}{more}"


def choose_fields(
    binding: Binding,
    available: Sequence[str],
    inputs: Sequence[TensorSignature],
    targets: Sequence[TensorSignature],
    *,
    rest_are_features: bool = False,
) -> Fields:
    """The fields of a tabular source from its options `input`, `target` and `scale`.

    With `rest_are_features`, every column that is no target is a feature of the single input,
    unless `input` names columns.
    """
    path = binding.path or binding.text
    target_columns = choose_columns(
        path, available, names_option(binding, "target"), targets, "target"
    )
    requested = names_option(binding, "input")
    if requested is None and rest_are_features and len(inputs) == 1:
        taken = {name for columns in target_columns for name in columns}
        requested = tuple(name for name in available if name not in taken)
    input_columns = choose_columns(path, available, requested, inputs, "input")
    scale = scale_option(binding, inputs)
    return Fields(
        tuple(
            Field(signature, columns, scale)
            for signature, columns in zip(inputs, input_columns, strict=True)
        ),
        tuple(
            Field(signature, columns)
            for signature, columns in zip(targets, target_columns, strict=True)
        ),
    )
