from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.compiler.counter_random import keep_mask
from tests.compiler.lowering import numbered, through_onnx


def mask(seed: int, site: int = 1, count: int = 100_000, probability: float = 0.5) -> np.ndarray:
    return keep_mask(torch.tensor(seed), site, (count,), probability).numpy()


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked(probability: float) -> None:
    deviation = (probability * (1 - probability) / 100_000) ** 0.5
    for seed in range(5):
        assert abs(1 - mask(seed, probability=probability).mean() - probability) < 5 * deviation


@pytest.mark.parametrize("other", [(8, 1), (7, 2), (7 + 2**32, 1), (7 + 2**40, 1)])
def test_other_seeds_and_sites_are_independent(other: tuple[int, int]) -> None:
    agreement = (mask(7, 1) == mask(*other)).mean()
    assert abs(agreement - 0.5) < 0.01


@pytest.mark.parametrize("lag", [1, 2, 64, 4096])
def test_neighbours_are_independent(lag: int) -> None:
    drawn = mask(3)
    assert abs((drawn[lag:] == drawn[:-lag]).mean() - 0.5) < 0.01


def test_the_numbers_never_change() -> None:
    """A plan compiled today and one compiled later must drop alike."""
    assert mask(12345, count=24).astype(int).tolist() == EXPECTED


EXPECTED = [0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(-(2**63), 2**63 - 1))
def test_torch_and_onnxruntime_draw_the_same_mask(seed: int) -> None:
    found = _through_onnx(seed)
    np.testing.assert_array_equal(found, keep_mask(torch.tensor(seed), 3, (5, 8), 0.3).numpy())


def _through_onnx(seed: int) -> np.ndarray:
    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"mask": keep_mask(tensors["t0"], 3, (5, 8), 0.3)}

    return through_onnx(step, numbered(torch.tensor(seed)))["mask"]
