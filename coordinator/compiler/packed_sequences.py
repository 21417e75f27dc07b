"""Sequences of unequal length, as torch.nn.utils.rnn packs them, in a graph of fixed shapes.

torch packs a padded batch step by step, without the padding: the shape depends on the lengths,
which no plan can hold. While a model is traced its padded form stands in for the packed one, and
the lengths become a mask that holds each state past its example's end. The place of `batch_sizes`
in a PackedSequence takes a token by which the lengths are found again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater.errors import CompileError


@dataclass(frozen=True)
class _Packed:
    token: Tensor
    lengths: Tensor
    steps: int


class Packing:
    """What was packed during one trace."""

    def __init__(self) -> None:
        self._packed: dict[int, _Packed] = {}

    def __contains__(self, token: Any) -> bool:
        """Whether this stands for `batch_sizes`."""
        return id(token) in self._packed

    def pack(self, sequence: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """As torch._pack_padded_sequence: rows [time * batch, ...] and the token."""
        steps = sequence.shape[1 if batch_first else 0]
        if not isinstance(steps, int):
            raise CompileError(
                "pack_padded_sequence takes the batch for time: pass batch_first=True where the "
                "batch comes first"
            )
        token = torch.zeros(1, dtype=torch.int64)
        self._packed[id(token)] = _Packed(token, lengths, steps)
        sequence = sequence.transpose(0, 1) if batch_first else sequence
        return _filled(sequence, lengths, 0.0).flatten(0, 1), token

    def pad(
        self, rows: Tensor, token: Tensor, batch_first: bool, value: float, total_length: int
    ) -> tuple[Tensor, Tensor]:
        """As torch._pad_packed_sequence: the padded sequence and the lengths."""
        packed = self._packed[id(token)]
        if total_length != packed.steps:
            raise CompileError(
                "pad_packed_sequence gives as many steps as the longest example has, which depends "
                f"on the data: pass total_length={packed.steps}, the length that was packed"
            )
        sequence = _filled(self.unflattened(rows, token), packed.lengths, value)
        return sequence.transpose(0, 1) if batch_first else sequence, packed.lengths

    def unflattened(self, rows: Tensor, token: Tensor) -> Tensor:
        """Rows with time and batch apart again."""
        packed = self._packed[id(token)]
        return rows.reshape(packed.steps, self.batch_size(token), *rows.shape[1:])

    def lengths(self, token: Tensor) -> Tensor:
        """The number of steps of each example."""
        return self._packed[id(token)].lengths

    def batch_size(self, token: Tensor) -> Any:
        """What torch reads from the first of the batch sizes."""
        return self._packed[id(token)].lengths.shape[0]


def step_mask(lengths: Tensor, sequence: Tensor) -> Tensor:
    """[time, batch, 1]: 1 where a step belongs to the example, else 0."""
    return _belongs(lengths, sequence).to(sequence.dtype).unsqueeze(-1)


def _belongs(lengths: Tensor, sequence: Tensor) -> Tensor:
    steps = torch.arange(int(sequence.shape[0]), device=lengths.device)
    return steps.unsqueeze(1) < lengths


def _filled(sequence: Tensor, lengths: Tensor, value: float) -> Tensor:
    """The value behind the end of each example, whatever was there: a product would keep a NaN."""
    mask = _belongs(lengths, sequence)
    shape = (*mask.shape, *[1] * (sequence.dim() - 2))
    return torch.where(mask.reshape(shape), sequence, value)
