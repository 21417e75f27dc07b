"""One rank of several, without a coordinator: trains a plan and writes down what came of it.

Arguments: plan file, output folder, what befalls rank 1 in its second step (nothing, fail, die),
and the device, if it is not the CPU.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_client.ranks.follower import Follower
from edge_client.ranks.leader import Leader
from edge_client.ranks.place import RankPlace, rank_place
from edge_client.ranks.torch_group import RankGroup, RanksBrokenError
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.batch import Batch
from headwater.errors import PlanError
from headwater.plan import Plan
from tests.zoo import ZOO, batch

NAME = "smooth"
SIZES = (7, 7, 8, 1, 7)


def batches() -> list[Batch]:
    """Batches that two ranks cannot share evenly; of one, a rank gets nothing at all."""
    return [batch(ZOO[NAME], size, step) for step, size in enumerate(SIZES)]


class Befallen(TorchTrainer):
    """A trainer whose second step fails, or takes its process with it."""

    def __init__(self, plan: Plan, fate: str, **options: Any) -> None:
        super().__init__(plan, **options)
        self._fate = fate
        self._count = 0

    def gradients(self, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
        self._count += 1
        if self._count == 2 and self._fate == "fail":
            raise PlanError("the step does not fit")
        if self._count == 2 and self._fate == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradients(batch, seed)


def opener(fate: str, device: str) -> Callable[[Plan], TorchTrainer]:
    return lambda plan: Befallen(plan, fate, threads=1, device=device)


def main() -> None:
    plan, folder, fate = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    place = rank_place(os.environ) or RankPlace(0, 1, 0)
    group = RankGroup(place, device, step_seconds=120)
    if place.rank:
        Follower(group, opener(fate, device)).follow()
        return
    leader = Leader(group, opener("nothing", device))
    notes: dict[str, Any] = {"losses": [], "reasons": [], "broken": False}

    def end_client() -> None:
        notes["broken"] = True

    leader.hear(end_client)
    try:
        train(leader, Plan.open(plan), notes, folder)
    except RanksBrokenError as error:
        notes["reasons"].append(str(error))
    finally:
        leader.close()
        (folder / "notes.json").write_text(json.dumps(notes))


def train(leader: Leader, plan: Plan, notes: dict[str, Any], folder: Path) -> None:
    trainer = leader.open(plan)
    trainer.set_weights(plan.initial_weights())
    trainer.reset_optimizer()
    for step, examples in enumerate(batches()):
        try:
            notes["losses"].append(trainer.train_step(examples, {}, step)["loss"])
        except PlanError as error:
            notes["reasons"].append(str(error))
    notes["evaluation"] = trainer.evaluate_step(batches()[0])
    np.save(folder / "weights.npy", trainer.weights().floats)


if __name__ == "__main__":
    main()
