"""Autoencoders: a convolutional one, and a variational one that draws its code.

Hinton, Salakhutdinov: Reducing the dimensionality of data with neural networks, Science, 2006.
Kingma, Welling: Auto-encoding variational Bayes, ICLR 2014.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


class Autoencoder(nn.Sequential):
    """Images [batch, 1, side, side] to images of the same shape; sides divisible by four."""

    def __init__(self, side: int, width: int, code: int) -> None:
        small = side // 4
        super().__init__(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * small * small, code),
            nn.Linear(code, 2 * width * small * small), nn.ReLU(),
            nn.Unflatten(1, (2 * width, small, small)),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 3, 2, 1, 1),
        )  # fmt: skip


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class Vae(nn.Module):
    """Vectors [batch, size] to [batch, size + 2 * code]: logits, then the code's mean and log
    variance, since a plan has one output.
    """

    def __init__(self, size: int, hidden: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, 2 * code)
        )
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.Tanh(), nn.Linear(hidden, size))

    def forward(self, features: Tensor) -> Tensor:
        mean, log_variance = self.encoder(features).chunk(2, 1)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return torch.cat([self.decoder(code), mean, log_variance], 1)


def evidence_lower_bound(output: Tensor, pixels: Tensor) -> Tensor:
    """The negative bound, a mean over the batch: reconstruction plus divergence from a normal."""
    size = pixels.shape[1]
    code = (output.shape[1] - size) // 2
    logits, mean, log_variance = torch.split(output, [size, code, code], 1)
    reconstruction = F.binary_cross_entropy_with_logits(
        logits, pixels.to(logits.dtype), reduction="none"
    ).sum(1)
    divergence = -0.5 * (1 + log_variance - mean * mean - log_variance.exp()).sum(1)
    bound: Tensor = (reconstruction + divergence).mean()
    return bound


def _autoencoder(side: int, width: int, code: int) -> Case:
    image = TensorSignature("image", (1, side, side), "float32")
    return Case(
        partial(Autoencoder, side, width, code), (image,), (image,), "mse_loss", (),
        {"name": "adam", "learning_rate": 0.001},
    )  # fmt: skip


def _vae(size: int, hidden: int, code: int) -> Case:
    return Case(
        partial(Vae, size, hidden, code), (TensorSignature("pixels", (size,), "float32"),),
        (TensorSignature("pixels", (size,), "bool"),), evidence_lower_bound, (),
        {"name": "adam", "learning_rate": 0.001},
    )  # fmt: skip


MODELS = {
    "autoencoder": Whole(_autoencoder(28, 16, 32), _autoencoder(8, 3, 4)),
    "VAE": Whole(_vae(784, 400, 20), _vae(12, 8, 3)),
}
