"""A one-dimensional convolutional network on windows of sensor values.

Yang, Nguyen, San, Li, Krishnaswamy: Deep convolutional neural networks on multichannel time series
for human activity recognition, IJCAI 2015. The full size takes windows as in Anguita et al.: A
public domain dataset for human activity recognition using smartphones, ESANN 2013: nine channels,
128 samples, six activities.
"""

from functools import partial

from torch import nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


class SensorCnn(nn.Sequential):
    """Windows [batch, channels, samples] to [batch, classes]."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(
            nn.Conv1d(channels, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(width, 2 * width, 5, padding=2), nn.BatchNorm1d(2 * width), nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(2 * width, 2 * width, 3, padding=2, dilation=2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width, classes),
        )  # fmt: skip


def _case(channels: int, samples: int, width: int, classes: int) -> Case:
    window = TensorSignature("window", (channels, samples), "float32")
    activity = TensorSignature("activity", (), "int64", classes)
    return Case(partial(SensorCnn, channels, width, classes), (window,), (activity,))


MODELS = {"1-D CNN on sensor windows": Whole(_case(9, 128, 32, 6), _case(3, 16, 4, 3))}
