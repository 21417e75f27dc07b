"""Padding by joining or by indices: torch's own constant_pad_nd fixes the batch while it is traced,
and its other kernels have no counterpart in ONNX.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.errors import CompileError


def padded(
    input: Tensor,  # noqa: A002 - torch's name
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    """torch.nn.functional.pad; negative amounts crop."""
    for pair in range(len(pad) // 2):
        axis = input.dim() - 1 - pair
        low, high = pad[2 * pair : 2 * pair + 2]
        if mode != "constant":
            positions = _positions(int(input.shape[axis]), low, high, mode)
            input = input.index_select(axis, torch.tensor(positions, device=input.device))  # noqa: A001
            continue
        input = input.narrow(axis, max(-low, 0), input.shape[axis] - max(-low, 0) - max(-high, 0))  # noqa: A001
        sides = [
            input.new_full((*input.shape[:axis], size, *input.shape[axis + 1 :]), value or 0.0)
            for size in (max(low, 0), max(high, 0))
        ]
        kept = [part for part in (sides[0], input, sides[1]) if part.shape[axis] != 0]
        input = torch.cat(kept, axis)  # noqa: A001
    return input


def _positions(size: int, low: int, high: int, mode: str) -> list[int]:
    """Which elements of a dimension stand in the padded one."""
    if mode == "circular":
        return [position % size for position in range(-low, size + high)]
    if mode == "replicate":
        return [min(max(position, 0), size - 1) for position in range(-low, size + high)]
    if mode == "reflect" and max(low, high) < size:
        last = size - 1
        return [last - abs(last - abs(position)) for position in range(-low, size + high)]
    raise CompileError(
        f"padding a dimension of {size} by {low} and {high} in mode {mode!r} is not possible: "
        "the modes are constant, reflect (by less than the size), replicate and circular"
    )
