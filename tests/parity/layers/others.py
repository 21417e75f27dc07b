"""Linear maps, distances, parametrizations."""

import warnings
from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations

from tests.parity.layer import IMAGE, SEQUENCE, VECTOR, Function, Itself, Layer


def normalized_as_of_old() -> nn.Module:
    """The first form of weight normalization, deprecated in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(6, 4))


def _vector(build: Callable[[], nn.Module]) -> Layer:
    return Layer(build, VECTOR)


LAYERS = {
    "Linear": _vector(lambda: nn.Linear(6, 4)),
    "Linear, no bias": _vector(lambda: nn.Linear(6, 4, bias=False)),
    "Identity": _vector(nn.Identity),
    "Bilinear": _vector(lambda: Itself(nn.Bilinear(6, 6, 4))),
    "CosineSimilarity": _vector(
        lambda: Function(lambda x: nn.CosineSimilarity()(x, x.flip(1)).unsqueeze(1))
    ),
    "PairwiseDistance": _vector(
        lambda: Function(lambda x: nn.PairwiseDistance()(x, x.flip(1)).unsqueeze(1))
    ),
    "Flatten and Unflatten": Layer(
        lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 3))), SEQUENCE
    ),
    "weight_norm": _vector(lambda: parametrizations.weight_norm(nn.Linear(6, 4))),
    "weight_norm, of a convolution": Layer(
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), IMAGE
    ),
    "weight_norm, deprecated form": _vector(normalized_as_of_old),
    "spectral_norm": _vector(lambda: parametrizations.spectral_norm(nn.Linear(6, 4))),
    "spectral_norm, deprecated form": _vector(lambda: nn.utils.spectral_norm(nn.Linear(6, 4))),
}

REFUSED = {
    "orthogonal": (
        _vector(lambda: parametrizations.orthogonal(nn.Linear(6, 6))),
        "linalg",
    ),
}
