"""All whole models by name, from one module a family."""

from tests.models import (
    autoencoder,
    lenet,
    mobilenet,
    recurrent,
    resnet,
    signal,
    tables,
    transformer,
    unet,
)
from tests.models.whole import Whole

_FAMILIES = (
    lenet, resnet, mobilenet, transformer, recurrent, signal, unet, autoencoder, tables,
)  # fmt: skip

MODELS: dict[str, Whole] = {n: one for family in _FAMILIES for n, one in family.MODELS.items()}
