"""A small convolutional network for 8x8 handwritten digits: 10,026 parameters.

Group normalization keeps clients with few classes from pulling the model apart (Hsieh, Phanishayee,
Mutlu, Gibbons, "The non-IID data quagmire of decentralized machine learning", ICML 2020).
"""

from torch import Tensor, nn


class Net(nn.Module):
    """Images [batch, 1, 8, 8] with values from 0 to 1, to scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The score of each class."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores
