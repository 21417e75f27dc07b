"""The digits' network in Keras 3, on its torch backend: 4,474 parameters."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before the first import of keras

import keras
from keras import layers


def network() -> keras.Model:
    """Images [batch, 1, 8, 8] with values from 0 to 1, to scores [batch, 10]."""
    return keras.Sequential(
        [
            keras.Input((1, 8, 8)),
            layers.Permute((2, 3, 1)),  # Keras has the channels last
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(16, activation="relu"),
            layers.Dense(10),
        ]
    )
