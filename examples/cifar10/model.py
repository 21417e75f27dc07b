"""LeNet for CIFAR-10, as in LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to
document recognition", Proceedings of the IEEE, 1998, with ReLU and max pooling: 62,006 parameters.
"""

from torch import Tensor, nn


class Net(nn.Module):
    """Images [batch, 3, 32, 32] with values from -1 to 1, to scores [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """The score of each class; LeNet learns sooner from the centred pixels of the job file."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
