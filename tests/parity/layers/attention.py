"""Attention."""

from torch import Tensor, nn

from tests.parity.layer import SEQUENCE, Layer


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.attention(features, features, features, need_weights=False)[0]
        return found


LAYERS = {
    "MultiheadAttention": Layer(SelfAttention, SEQUENCE),
    "TransformerEncoderLayer": Layer(
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SEQUENCE
    ),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
