"""Activations."""

from torch import nn

from tests.parity.layer import VECTOR, Layer

LAYERS = {
    kind.__name__: Layer(kind, VECTOR)
    for kind in (
        nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardtanh, nn.Softshrink, nn.LeakyReLU, nn.PReLU, nn.Softplus,
        nn.LogSigmoid, nn.Tanh, nn.Sigmoid, nn.Tanhshrink, nn.Softsign, nn.GLU,
    )
}  # fmt: skip

REFUSED = {
    "Hardshrink": (
        Layer(nn.Hardshrink, VECTOR),
        r"aten.hardshrink.default .* is not supported on devices",
    ),
    "RReLU": (Layer(nn.RReLU, VECTOR), "draws random numbers: only dropout draws alike"),
}
