"""Both trainers on real data: a network with ReLU and max-pool ends at the same accuracy.

Its weights are not compared: a kinked network is chaotic, and two float32 runs that differ by one
rounding drift apart within an epoch. Accuracies of 360 examples may differ by `SPREAD`.
"""

import numpy as np
import torch
from torch import nn

from coordinator.compiler.compile import compile_plan
from edge_client.trainers import open_trainer
from headwater.batch import Array, Batch, TensorSignature
from headwater.plan import Plan
from tests.plans import opened

EPOCHS, BATCH_SIZE = 4, 32
SPREAD = 0.03


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (
        (images[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32),
        labels[order].astype(np.int64),
    )


def _plan() -> Plan:
    torch.manual_seed(0)
    compiled = compile_plan(
        Network(), "cross_entropy", ["accuracy"],
        {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        [TensorSignature("image", (1, 8, 8), "float32")],
        [TensorSignature("label", (), "int64", maximum=10)],
        name="digits", batch_size=BATCH_SIZE, seed=0,
    )  # fmt: skip
    return opened(compiled)


def test_the_same_accuracy_on_digits() -> None:
    plan, (images, labels) = _plan(), _digits()
    held_out = Batch((images[-360:],), (labels[-360:],))
    images, labels = images[:-360], labels[:-360]
    accuracies = []
    for backend in ("onnxruntime", "torch"):
        trainer = open_trainer(plan, backend, threads=1, device="cpu")
        trainer.set_weights(plan.initial_weights())
        for epoch in range(EPOCHS):
            order = np.random.default_rng(epoch).permutation(len(labels))
            for start in range(0, len(order), BATCH_SIZE):
                chosen = order[start : start + BATCH_SIZE]
                trainer.train_step(Batch((images[chosen],), (labels[chosen],)), {}, start)
        accuracies.append(trainer.evaluate_step(held_out)["accuracy"])
    assert min(accuracies) > 0.9
    assert abs(accuracies[0] - accuracies[1]) <= SPREAD
