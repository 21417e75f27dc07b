from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.compiler.counter_random import keep_mask, normal, uniform
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


def test_uniform_numbers_are_uniform_and_the_same_in_every_dtype() -> None:
    single = uniform(torch.tensor(3), 1, (100_000,), torch.float32)
    assert single.min() >= 0 and single.max() < 1
    counts = torch.histc(single, 20, 0, 1).numpy()
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    assert torch.equal(single.double(), uniform(torch.tensor(3), 1, (100_000,), torch.float64))


def test_normal_numbers_are_normal() -> None:
    drawn = normal(torch.tensor(5), 2, (100_000,), torch.float64)
    limits = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    share = (drawn[:, None] < limits).double().mean(0)
    exact = torch.special.ndtr(limits)
    assert (share - exact).abs().max() < 0.005
    assert abs(drawn.mean()) < 0.015 and abs(drawn.std() - 1) < 0.01
    assert drawn.abs().max() < 5.8


def test_onnxruntime_draws_the_same_normal_numbers_but_for_rounding() -> None:
    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shape = (tensors["t1"].shape[0], 4)
        return {
            "uniform": uniform(tensors["t0"], 1, shape, torch.float32),
            "normal": normal(tensors["t0"], 2, shape, torch.float32),
        }

    given = numbered(torch.tensor(9), torch.zeros(50))
    found, exact = through_onnx(step, given, ["t1"]), step(given)
    np.testing.assert_array_equal(found["uniform"], exact["uniform"].numpy())
    np.testing.assert_allclose(found["normal"], exact["normal"].numpy(), rtol=1e-5, atol=1e-5)
