"""One rank's trainer, in step with those of the other ranks."""

from collections.abc import Callable, Mapping

from edge_client.ranks.torch_group import RankGroup
from edge_client.trainers.torch_step import Figures
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.batch import Batch


class SharedTrainer:
    """Every rank calls the same method with its slice of a batch; None where it got no example.

    A slice's `share` is what it counts for in the whole batch: its examples, or their weights.
    """

    def __init__(self, group: RankGroup, trainer: TorchTrainer, figures: tuple[str, ...]) -> None:
        self.own = trainer
        self._group = group
        self._figures = figures

    def train(
        self, part: Batch | None, share: float, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """One optimizer step over the whole batch; its mean loss and metrics.

        Gradients are added, each times its share. So are floating buffers: a batch norm keeps the
        mean of the ranks' statistics, each of its own slice. Integer buffers take the largest.

        Raises:
            PlanError, DataError: a rank failed: no rank took the step.
            RanksBrokenError: a rank is gone.
        """
        state = self.own.state
        figures = self._together(
            share, lambda: None if part is None else Figures(self.own.gradients(part, seed)).read()
        )
        if part is None:
            state.gradients.flat.zero_()
        for vector in (state.gradients, state.float_buffers):
            if vector.flat.numel():
                self._group.add(vector.flat.mul_(share))
        if state.integer_buffers.flat.numel():
            self._group.largest(state.integer_buffers.flat)
        self.own.apply(hyperparameters)
        return figures

    def evaluate(self, part: Batch | None, share: float) -> dict[str, float]:
        """Mean loss and metrics of the whole batch.

        Raises:
            PlanError, DataError: a rank failed.
            RanksBrokenError: a rank is gone.
        """
        return self._together(share, lambda: None if part is None else self.own.evaluate_step(part))

    def _together(
        self, share: float, compute: Callable[[], dict[str, float] | None]
    ) -> dict[str, float]:
        """The means of what every rank computed, once all of them did."""
        found: dict[str, float] | None = None
        failure: Exception | None = None
        try:
            found = compute()
        except Exception as error:
            failure = error
        numbers = [share * found[name] if found else 0.0 for name in self._figures]
        sums = self._group.agree(numbers, failure)
        return dict(zip(self._figures, sums, strict=True))
