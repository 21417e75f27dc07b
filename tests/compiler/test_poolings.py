"""Poolings of every rank through onnxruntime against eager torch, forward and backward."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiler.lowering import assert_same, gradients_of, numbered

SIGNAL, IMAGE, VOLUME = (2, 2, 7), (2, 2, 7, 6), (2, 2, 5, 4, 6)

AVERAGES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "tiles": (IMAGE, lambda x: F.avg_pool2d(x[..., :6, :], 2)),
    "gaps": (IMAGE, lambda x: F.avg_pool2d(x, 2, 3, 1)),
    "overlaps": (IMAGE, lambda x: F.avg_pool2d(x, 3, (1, 2), 1)),
    "ceil": (SIGNAL, lambda x: F.avg_pool1d(x, 2, 2, ceil_mode=True)),
    "ceil, last window dropped": (IMAGE, lambda x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True)),
    "padding not counted": (IMAGE, lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "both": (VOLUME, lambda x: F.avg_pool3d(x, 3, 2, 1, True, False)),
    "divisor": (VOLUME, lambda x: F.avg_pool3d(x, 2, divisor_override=3)),
    "adaptive": (VOLUME, lambda x: F.adaptive_avg_pool3d(x, (3, 2, 6))),
    "adaptive, repeating": (SIGNAL, lambda x: F.adaptive_avg_pool1d(x, 9)),
}
MAXIMA: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "tiles": (VOLUME, lambda x: F.max_pool3d(x, 2)),
    "gaps": (SIGNAL, lambda x: F.max_pool1d(x, 2, 3, 1)),
    "overlaps": (VOLUME, lambda x: F.max_pool3d(x, 3, 2, 1)),
    "ceil": (IMAGE, lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "ceil, last window dropped": (IMAGE, lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True)),
    "dilated, ceil": (IMAGE, lambda x: F.max_pool2d(x, 2, 2, 1, 2, ceil_mode=True)),
    "adaptive": (IMAGE, lambda x: F.adaptive_max_pool2d(x, (3, 4))),
    "adaptive, equal": (VOLUME, lambda x: F.adaptive_max_pool3d(x, (1, 2, 3))),
    "adaptive, repeating": (SIGNAL, lambda x: F.adaptive_max_pool1d(x, 9)),
    "put back": (IMAGE, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_and_its_gradient(name: str) -> None:
    shape, pool = AVERAGES[name]
    assert_same(gradients_of(pool), numbered(_values(shape)), rtol=1e-5)


@pytest.mark.parametrize("name", MAXIMA)
def test_a_maximum_and_its_gradient(name: str) -> None:
    shape, pool = MAXIMA[name]
    assert_same(gradients_of(pool), numbered(_values(shape)), rtol=1e-5)


def test_ties_in_adaptive_windows_go_where_torch_sends_them() -> None:
    assert_same(
        gradients_of(lambda x: F.adaptive_max_pool2d(x, (3, 4))), numbered(torch.zeros(IMAGE))
    )


def _values(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))
