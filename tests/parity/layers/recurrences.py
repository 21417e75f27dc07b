"""Recurrent layers."""

from torch import nn

from tests.parity.layer import SEQUENCE, First, Layer

LAYERS = {
    "LSTM": Layer(lambda: First(nn.LSTM(6, 4, 2, batch_first=True)), SEQUENCE),
    "GRU": Layer(lambda: First(nn.GRU(6, 4, batch_first=True, bidirectional=True)), SEQUENCE),
    "RNN": Layer(lambda: First(nn.RNN(6, 4, batch_first=True)), SEQUENCE),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
