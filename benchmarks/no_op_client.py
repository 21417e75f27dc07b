"""A client that returns at once: all of headwater-client but the training.

It takes the place of `headwater-client run` in the benchmarks of what a round costs.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import numpy as np

from benchmarks.random_plan import DATASET
from edge_client.program import end_process, run_client
from edge_client.settings import Settings
from headwater.batch import Array, Batch
from headwater.layout import Weights


class NoOpTrainer:
    """Returns the weights it was given, changed by a factor of its own, so that no two updates are
    the same bytes.
    """

    def __init__(self, factor: float) -> None:
        self._factor = np.float32(factor)
        self._weights = Weights(np.empty(0, np.float32), np.empty(0, np.int64))

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        self._weights = Weights(weights.floats * self._factor, weights.integers)

    def weights(self) -> Weights:
        return self._weights

    def reset_optimizer(self) -> None:
        pass

    def optimizer_state(self) -> dict[str, Array]:
        return {}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        pass

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        pass

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        return {"loss": 0.0}

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        return {"loss": 0.0}


class OneExample:
    """A data set with one example."""

    name = DATASET

    def example_count(self) -> int:
        return 1

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        yield Batch((np.zeros((1, 1), np.float32),), (np.zeros(1, np.int64),))


@click.command(help=__doc__)
@click.option("--coordinator", required=True, metavar="HOST:PORT")
@click.option("--name", required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
def main(coordinator: str, name: str, state: Path) -> None:
    settings = Settings(
        coordinator, {DATASET: "noise"}, state, name, trainer="onnxruntime", threads=1
    )
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    code = run_client(
        settings,
        open_trainer=lambda plan: NoOpTrainer(1.0 + 0.01 * (share - 0.5)),
        open_source=lambda binding, inputs, targets: OneExample(),
    )
    end_process(code)


if __name__ == "__main__":
    main()
