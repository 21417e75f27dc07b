"""The estimate of a step's peak memory."""

import torch
from torch import Tensor

from coordinator.compiler.memory import peak_memory
from tests.compiler.lowering import lowered, numbered

WIDTH = 100
BYTES = 4 * WIDTH


def test_a_value_lives_as_long_as_a_view_of_it() -> None:
    def step(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        doubled = (tensors["t0"] * 2).reshape(-1)
        tripled = (tensors["t0"] * 3).reshape(-1)
        return {"y": doubled + tripled}

    cost = peak_memory(lowered(step, numbered(torch.randn(7, WIDTH)), ["t0"]), batch_size=10)  # type: ignore[arg-type]
    # the input, the two products and their sum
    assert (cost.fixed, cost.per_example) == (0, 4 * BYTES)
