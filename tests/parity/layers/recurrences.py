"""Recurrent layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.parity.layer import SEQUENCE, First, Layer


class Cells(nn.Module):
    """An author's own loop over time: it is unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.RNNCell(6, 5)
        self.gated = nn.GRUCell(5, 4)
        self.long = nn.LSTMCell(4, 3)

    def forward(self, sequence: Tensor) -> Tensor:
        plain, gated, hidden, memory = (
            sequence.new_zeros(sequence.shape[0], width) for width in (5, 4, 3, 3)
        )
        for step in sequence.unbind(1):
            plain = self.plain(step, plain)
            gated = self.gated(plain, gated)
            hidden, memory = self.long(gated, (hidden, memory))
        return torch.cat([hidden, memory], 1)


class States(nn.Module):
    """Initial states of the model's own; the final ones count too."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(6, 4)
        self.cells = nn.LSTM(6, 4)

    def forward(self, sequence: Tensor) -> Tensor:
        start = self.start(sequence[:, 0]).unsqueeze(0)
        output, (hidden, memory) = self.cells(sequence.transpose(0, 1), (start, start.tanh()))
        return torch.cat([output[-1], hidden[0], memory[0]], 1)


class Final(nn.Module):
    """The final states alone: nobody reads the output."""

    def __init__(self, cells: nn.RNNBase) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, sequence: Tensor) -> Tensor:
        _, states = self.cells(sequence)
        last: Tensor = states[-1] if isinstance(states, tuple) else states
        return last[-1]


class Packed(nn.Module):
    """Lengths that come with the data: padding changes neither the output nor the final state."""

    def __init__(self, cells: Callable[[], nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.cells = cells()

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = 1 + tokens[:, 0].clamp(max=4)
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        output: Any
        output, states = self.cells(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True, total_length=5)
        finals = states if isinstance(states, tuple) else (states,)
        return torch.cat([padded.flatten(1), *(s.transpose(0, 1).flatten(1) for s in finals)], 1)


def _packed(cells: Callable[[], nn.RNNBase]) -> Layer:
    return Layer(lambda: Packed(cells), (5,), "int64", 5)


LAYERS = {
    "LSTM": Layer(lambda: First(nn.LSTM(6, 4, batch_first=True)), SEQUENCE),
    "LSTM, stacked, dropout": Layer(
        lambda: First(nn.LSTM(6, 4, 2, batch_first=True, dropout=0.3, bidirectional=True)), SEQUENCE
    ),
    "LSTM, proj_size": Layer(
        lambda: First(nn.LSTM(6, 4, batch_first=True, proj_size=3)), SEQUENCE
    ),
    "LSTM, initial states": Layer(States, SEQUENCE),
    "LSTM, packed": _packed(
        lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True, dropout=0.3)
    ),
    "GRU": Layer(lambda: First(nn.GRU(6, 4, batch_first=True, bidirectional=True)), SEQUENCE),
    "GRU, packed": _packed(lambda: nn.GRU(4, 3, batch_first=True, bidirectional=True)),
    "LSTM, final memory": Layer(lambda: Final(nn.LSTM(6, 4, batch_first=True)), SEQUENCE),
    "GRU, final state": Layer(lambda: Final(nn.GRU(6, 4, batch_first=True)), SEQUENCE),
    "RNN": Layer(lambda: First(nn.RNN(6, 4, batch_first=True)), SEQUENCE),
    "RNN, ReLU": Layer(
        lambda: First(nn.RNN(6, 4, batch_first=True, nonlinearity="relu")), SEQUENCE
    ),
    "LSTMCell, GRUCell, RNNCell": Layer(Cells, SEQUENCE),
}  # fmt: skip

REFUSED: dict[str, tuple[Layer, str]] = {
    "LSTM, no batch": (
        Layer(lambda: First(nn.LSTM(6, 4)), (6,)),
        "runs along the batch: give it three dimensions",
    ),
}
