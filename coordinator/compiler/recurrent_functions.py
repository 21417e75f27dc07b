"""The functions that torch.nn.LSTM, GRU, RNN and their cells call, and those that pack input."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from coordinator.compiler.native_recurrence import masked_layer, stand_in
from coordinator.compiler.packed_sequences import Packing
from coordinator.compiler.recurrent_cells import CELLS
from coordinator.compiler.recurrent_layers import (
    Drop,
    RecurrentCall,
    native_layer,
    portable_layer,
    stacked,
)

Function = Callable[..., Any]

_LAYERS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_PACK = torch._C._VariableFunctions._pack_padded_sequence
_PAD = torch._C._VariableFunctions._pad_packed_sequence
_CHECK = nn.RNNBase.check_forward_args


class RecurrentFunctions:
    """Runs them in a form that every runtime computes alike, with dropout by `drop`.

    With `native` they are torch's own, except that dropout between layers is by `drop` too. While a
    model is traced torch's own fix the batch (cells), which are then spelled out, or depend on the
    data (packed sequences), which then run padded.
    """

    def __init__(self, drop: Drop, native: bool) -> None:
        self._drop = drop
        self._native = native
        self._packing = Packing()

    def __enter__(self) -> None:
        packing = self._packing

        def check(self: nn.RNNBase, input: Tensor, hidden: Any, batch_sizes: Any) -> None:  # noqa: A002
            """torch's would turn the batch size of a packed sequence into a number."""
            if batch_sizes not in packing:
                _CHECK(self, input, hidden, batch_sizes)

        nn.RNNBase.check_forward_args = check  # type: ignore[method-assign]

    def __exit__(self, *raised: object) -> None:
        nn.RNNBase.check_forward_args = _CHECK  # type: ignore[method-assign]

    def takes(self, function: Function, arguments: Sequence[Any]) -> bool:
        """Whether a call is to be made here."""
        if function in _LAYERS:
            return True
        if function in (_PAD, Tensor.__getitem__):
            return any(argument in self._packing for argument in arguments[:2])
        if function in CELLS or function is _PACK:
            return not self._native or isinstance(arguments[0], FakeTensor)
        return False

    def call(self, function: Function, arguments: Sequence[Any]) -> Any:
        """The function's result.

        Raises:
            CompileError: a layer would run along the batch, or the length of its output would
                depend on the data.
        """
        if function in CELLS:
            return CELLS[function](*arguments)
        if function is _PACK:
            return self._packing.pack(*arguments)
        if function is _PAD:
            return self._packing.pad(*arguments)
        if function is Tensor.__getitem__:
            return self._packing.batch_size(arguments[0])
        if isinstance(arguments[3], bool):
            return self._padded(function, *arguments)
        return self._packed(function, *arguments)

    def _padded(self, function: Function, inputs: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *settings, batch_first = others
        call = _parsed(function, inputs.transpose(0, 1) if batch_first else inputs, *settings)
        if self._native and isinstance(inputs, FakeTensor):
            function = stand_in(function)
        if self._native and not call.dropout:
            # devices take a call only with a dropout of zero, also where it would not apply
            return tuple(function(inputs, *others[:4], 0.0, *others[5:]))
        layer = native_layer(function) if self._native else portable_layer
        output, *finals = stacked(call, layer, self._drop)
        return (output.transpose(0, 1) if batch_first else output, *finals)

    def _packed(
        self, function: Function, rows: Tensor, batch_sizes: Tensor, *settings: Any
    ) -> tuple[Tensor, ...]:
        if batch_sizes not in self._packing:
            return self._natively_packed(function, rows, batch_sizes, *settings)
        sequence = self._packing.unflattened(rows, batch_sizes)
        call = _parsed(function, sequence, *settings)
        call = replace(call, lengths=self._packing.lengths(batch_sizes))
        layer = masked_layer(stand_in(function)) if self._native else portable_layer
        output, *finals = stacked(call, layer, self._drop)
        return output.flatten(0, 1), *finals

    def _natively_packed(
        self, function: Function, rows: Tensor, batch_sizes: Tensor, *settings: Any
    ) -> tuple[Tensor, ...]:
        call = _parsed(function, rows, *settings)
        if not call.dropout:
            return tuple(function(rows, batch_sizes, *settings))

        def drop(rows: Tensor, probability: float) -> Tensor:
            padded, lengths = _PAD(rows, batch_sizes, False, 0.0, int(batch_sizes.shape[0]))
            dropped: Tensor = _PACK(self._drop(padded, probability), lengths, False)[0]
            return dropped

        return stacked(call, native_layer(function, batch_sizes), drop)


def _parsed(
    function: Function,
    inputs: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> RecurrentCall:
    kind = function.__name__
    return RecurrentCall(
        kind, inputs, tuple(states) if kind == "lstm" else (states,), tuple(weights), biased,
        layers, dropout if training and layers > 1 else 0.0, bidirectional,
    )  # fmt: skip
