"""Rank 0: the trainer that the client works with, which takes the other ranks along."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from weakref import WeakValueDictionary

import numpy as np

from edge_client.ranks.message import Message
from edge_client.ranks.shared_trainer import SharedTrainer
from edge_client.ranks.torch_group import RankGroup, RanksBrokenError
from edge_client.seeds import seed_of_part
from edge_client.trainers.signatures import (
    check_batch,
    check_correction,
    check_optimizer_state,
)
from edge_client.trainers.torch_trainer import TorchTrainer
from edge_client.workbench import MEMBERS
from headwater.batch import Array, Batch
from headwater.errors import HeadwaterError
from headwater.layout import Weights
from headwater.plan import MANIFEST, Plan
from headwater.values import batch_values

_log = logging.getLogger("headwater.client")


class Leader:
    """Opens plans on all ranks.

    `open_own` opens one on this rank.
    """

    def __init__(self, group: RankGroup, open_own: Callable[[Plan], TorchTrainer]) -> None:
        self._group = group
        self._open_own = open_own
        self._open: WeakValueDictionary[str, LeadingTrainer] = WeakValueDictionary()
        self._end_client: Callable[[], None] = lambda: None

    def hear(self, end_client: Callable[[], None]) -> None:
        """Learn how to end the client, from any thread: without all its ranks it cannot go on."""
        self._end_client = end_client

    def open(self, plan: Plan) -> "LeadingTrainer":
        """A trainer of this plan over all ranks, which drop the plans that are not used any more.

        Raises:
            PlanError: a rank cannot open the plan.
            RanksBrokenError: a rank is gone.
        """
        names = [name for name in MEMBERS["torch"] if name in plan.manifest.members]
        members = {name: np.frombuffer(plan.read(name), np.uint8) for name in names}
        members[MANIFEST] = np.frombuffer(plan.manifest_bytes, np.uint8)
        own: TorchTrainer | None = None
        failure: Exception | None = None
        with self.noticing():
            self.tell(Message("open", {"plan": plan.digest, "kept": list(self._open)}, members))
            try:
                own = self._open_own(plan)
            except HeadwaterError as error:
                failure = error
            self._group.agree([], failure)
        assert own is not None
        trainer = LeadingTrainer(self, self._group, plan, own)
        self._open[plan.digest] = trainer
        return trainer

    def tell(self, message: Message) -> None:
        """Send every other rank the same command."""
        for rank in range(1, self._group.size):
            self._group.send(rank, message)

    def close(self) -> None:
        """Let the other ranks end."""
        try:
            self.tell(Message("end"))
        except RanksBrokenError as error:
            _log.warning("%s", error)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Tell whoever runs the client when a rank is gone."""
        try:
            yield
        except RanksBrokenError:
            self._end_client()
            raise


class LeadingTrainer:
    """A `Trainer` whose steps all ranks take together; the state is that of this rank."""

    def __init__(self, leader: Leader, group: RankGroup, plan: Plan, own: TorchTrainer) -> None:
        self._leader = leader
        self._group = group
        self._plan = plan
        self._own = own
        self._shared = SharedTrainer(group, own, ("loss", *plan.manifest.metrics))

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        """As `Trainer.set_weights`, on all ranks."""
        self._own.set_weights(weights, anchor=anchor)
        arrays: dict[str, Array] = {"floats": weights.floats, "integers": weights.integers}
        self._tell("weights" if anchor else "weights within a round", arrays)

    def weights(self) -> Weights:
        """As `Trainer.weights`."""
        return self._own.weights()

    def reset_optimizer(self) -> None:
        """As `Trainer.reset_optimizer`, on all ranks."""
        self._own.reset_optimizer()
        self._tell("reset", {})

    def optimizer_state(self) -> dict[str, Array]:
        """As `Trainer.optimizer_state`."""
        return self._own.optimizer_state()

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """As `Trainer.set_optimizer_state`, on all ranks."""
        check_optimizer_state(state, self._plan.manifest)
        self._own.set_optimizer_state(state)
        self._tell("optimizer", state)

    def set_correction(self, correction: Mapping[str, Array] | None) -> None:
        """As `Trainer.set_correction`, on all ranks."""
        check_correction(correction, self._plan.manifest)
        self._own.set_correction(correction)
        self._tell("correction", correction or {})

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        """As `Trainer.train_step`, of a batch that the ranks share."""
        with self._leader.noticing():
            part, share = self._dealt("train", batch, seed, hyperparameters)
            return self._shared.train(part, share, hyperparameters, seed)

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        """As `Trainer.evaluate_step`, of a batch that the ranks share."""
        with self._leader.noticing():
            part, share = self._dealt("evaluate", batch, 0, {})
            return self._shared.evaluate(part, share)

    def _dealt(
        self, command: str, batch: Batch, seed: int, hyperparameters: Mapping[str, float]
    ) -> tuple[Batch | None, float]:
        """This rank's slice and its share, after every other rank got its own."""
        manifest = self._plan.manifest
        check_batch(batch, manifest.inputs, manifest.targets)
        own, *others = slices(batch, self._group.size)
        for rank, part in enumerate(others, start=1):
            values = {
                "plan": self._plan.digest, "share": part.mass / batch.mass,
                "seed": seed_of_part(seed, rank), "hyperparameters": dict(hyperparameters),
            }  # fmt: skip
            self._group.send(rank, Message(command, values, batch_values(part)))
        return own if own.mass else None, own.mass / batch.mass

    def _tell(self, command: str, arrays: Mapping[str, Array]) -> None:
        with self._leader.noticing():
            self._leader.tell(Message(command, {"plan": self._plan.digest}, arrays))


def slices(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts as even as can be, the first ones larger; some may be empty."""
    bounds = [-(-batch.size * index // count) for index in range(count + 1)]
    return [batch.part(start, stop) for start, stop in pairwise(bounds)]
