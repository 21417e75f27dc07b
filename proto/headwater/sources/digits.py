"""The handwritten digits that scikit-learn ships: 1,797 images of 8×8 in 10 classes."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.batch import TensorSignature
from headwater.errors import UsageError, require
from headwater.partitioning import dirichlet_parts, held_out, iid_parts
from headwater.sources.binding import (
    Binding,
    check_options,
    integer_option,
    positive_option,
)
from headwater.sources.fields import Field, Fields
from headwater.sources.npz import array_source
from headwater.sources.order import ArraySource

OPTIONS = ("split", "part", "parts", "alpha", "seed")
TEST_FRACTION = 0.2
SPLIT_SEED = 0


def read_digits(split: str = "all") -> dict[str, NDArray[Any]]:
    """`x` float32 [n, 1, 8, 8] in 0 to 1 and `y` int64 [n]; a fixed stratified fifth is the test.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        UsageError: `split` is not all, train or test.
    """
    if split not in ("all", "train", "test"):
        raise UsageError(f"digits: split={split} must be all, train or test")
    datasets = require("sklearn.datasets", extra="digits", purpose="read the digits")
    digits = datasets.load_digits()
    x = np.asarray(digits.images, np.float32).reshape(-1, 1, 8, 8) / np.float32(16)
    y = np.asarray(digits.target, np.int64)
    rows = np.arange(len(y))
    if split != "all":
        test = held_out(y, TEST_FRACTION, SPLIT_SEED)
        rows = test if split == "test" else np.setdiff1d(rows, test)
    return {"x": x[rows], "y": y[rows]}


def open_digits_source(
    binding: Binding, inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature]
) -> ArraySource:
    """`digits:?split=train&part=0&parts=4&alpha=0.5&seed=1`: one client's part, without files.

    Parts are IID, or Dirichlet(alpha) by label where `alpha` is given; the seed is 0 by default.
    """
    check_options(binding, OPTIONS)
    if len(inputs) != 1 or len(targets) != 1:
        raise UsageError(
            f"{binding.text}: the digits have one input and one target, the model has "
            f"{len(inputs)} and {len(targets)}"
        )
    arrays = read_digits(binding.options.get("split", "all"))
    rows = _part(binding, arrays["y"])
    fields = Fields((Field(inputs[0], ("x",)),), (Field(targets[0], ("y",)),))
    return array_source("digits:", fields, {name: array[rows] for name, array in arrays.items()})


def _part(binding: Binding, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    parts = integer_option(binding, "parts", 1, 1)
    part = integer_option(binding, "part", 0, 0)
    seed = integer_option(binding, "seed", 0, 0)
    alpha: Fraction | None = positive_option(binding, "alpha")
    if part >= parts:
        raise UsageError(f"{binding.text}: part={part} must be below parts={parts}")
    if alpha is None:
        return iid_parts(len(labels), parts, seed)[part]
    return dirichlet_parts(labels, parts, float(alpha), seed)[part]
