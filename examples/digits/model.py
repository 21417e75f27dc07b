"""A small convolutional network for 8x8 handwritten digits: 13,706 parameters."""

from torch import Tensor, nn


class Net(nn.Module):
    """Images [batch, 1, 8, 8] with values from 0 to 1, to scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """The score of each class."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
