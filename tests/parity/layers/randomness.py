"""Layers that draw random numbers: the same ones on every runtime."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from tests.parity.layer import IMAGE, SIGNAL, VECTOR, VOLUME, Function, Layer


def reparameterized(features: Tensor) -> Tensor:
    """Kingma, Welling, "Auto-encoding variational Bayes", ICLR 2014."""
    mean, log_variance = features.chunk(2, -1)
    return mean + (log_variance * 0.5).exp() * torch.randn_like(mean)


def _function(function: object) -> Layer:
    return Layer(lambda: Function(function), VECTOR)  # type: ignore[arg-type]


LAYERS = {
    "Dropout": Layer(lambda: nn.Dropout(0.3), VECTOR),
    "Dropout, in place": Layer(lambda: nn.Dropout(0.3, inplace=True), VECTOR),
    "Dropout1d": Layer(lambda: nn.Dropout1d(0.3), SIGNAL),
    "Dropout2d": Layer(lambda: nn.Dropout2d(0.3), IMAGE),
    "Dropout3d": Layer(lambda: nn.Dropout3d(0.3), VOLUME),
    "AlphaDropout": Layer(lambda: nn.AlphaDropout(0.3), VECTOR),
    "FeatureAlphaDropout": Layer(lambda: nn.FeatureAlphaDropout(0.3), IMAGE),
    "randn_like (VAE)": _function(reparameterized),
    "Normal.rsample": _function(lambda x: Normal(x, F.softplus(x)).rsample()),
    "randn": _function(lambda x: x + torch.randn(x.shape[0], 6) * 0.1),
    "rand": _function(lambda x: x * torch.rand(x.shape[0], 6)),
    "rand_like": _function(lambda x: x + torch.rand_like(x)),
    "bernoulli": _function(lambda x: x * torch.bernoulli(torch.full_like(x, 0.7))),
    "normal_": _function(lambda x: x + torch.empty_like(x).normal_(0, 0.1)),
    "uniform_": _function(lambda x: x + torch.empty_like(x).uniform_(-0.1, 0.1)),
    "gumbel_softmax": _function(lambda x: F.gumbel_softmax(x, 0.7)),
}

REFUSED = {
    "randint": (
        _function(lambda x: x + torch.randint(0, 2, (6,))),
        r"randint draws .* write \(torch.rand\(shape\) \* high\).long\(\)",
    ),
    "randperm": (
        _function(lambda x: x[:, torch.randperm(6)]),
        r"randperm draws .* write torch.rand\(count\).argsort\(\)",
    ),
    "multinomial": (
        _function(lambda x: x + torch.multinomial(x.softmax(1), 6)),
        "multinomial draws .* write the largest of logits",
    ),
}
