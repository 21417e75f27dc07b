"""Activations."""

import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.layer import IMAGE, VECTOR, Function, Layer


def gated(features: Tensor) -> Tensor:
    """SwiGLU: Shazeer, "GLU variants improve transformer", 2020."""
    gate, value = features.chunk(2, -1)
    return F.silu(gate) * value


LAYERS = {
    kind.__name__: Layer(kind, VECTOR)
    for kind in (
        nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.LeakyReLU, nn.PReLU, nn.RReLU,
        nn.Softplus, nn.LogSigmoid, nn.Tanh, nn.Sigmoid, nn.Tanhshrink, nn.Softsign, nn.GLU,
    )
} | {
    "GELU, tanh": Layer(lambda: nn.GELU("tanh"), VECTOR),
    "SwiGLU": Layer(lambda: Function(gated), VECTOR),
    "Threshold": Layer(lambda: nn.Threshold(0.1, -2.0), VECTOR),
    "Softmax": Layer(lambda: nn.Softmax(-1), VECTOR),
    "Softmin": Layer(lambda: nn.Softmin(-1), VECTOR),
    "LogSoftmax": Layer(lambda: nn.LogSoftmax(-1), VECTOR),
    "Softmax2d": Layer(nn.Softmax2d, IMAGE),
    "ReLU, in place": Layer(lambda: nn.ReLU(inplace=True), VECTOR),
}  # fmt: skip

REFUSED: dict[str, tuple[Layer, str]] = {}
