"""All layer cases by name, from one module a family; `REFUSED` pairs a layer with the message."""

from tests.parity.layer import Layer
from tests.parity.layers import (
    activations,
    attention,
    convolutions,
    embeddings,
    normalizations,
    others,
    poolings,
    randomness,
    recurrences,
    resamplings,
)

_FAMILIES = (
    activations, attention, convolutions, embeddings, normalizations, others, poolings, randomness,
    recurrences, resamplings,
)  # fmt: skip

LAYERS: dict[str, Layer] = {n: one for family in _FAMILIES for n, one in family.LAYERS.items()}
REFUSED: dict[str, tuple[Layer, str]] = {
    name: one for family in _FAMILIES for name, one in family.REFUSED.items()
}
assert len(LAYERS) == sum(len(family.LAYERS) for family in _FAMILIES), "two cases share a name"
