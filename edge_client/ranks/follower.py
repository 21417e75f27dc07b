"""The other ranks: they do what rank 0 says until it ends."""

from collections.abc import Callable, Mapping

from edge_client.ranks.message import Message
from edge_client.ranks.shared_trainer import SharedTrainer
from edge_client.ranks.torch_group import RankGroup
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.batch import Array, Batch
from headwater.errors import DataError, HeadwaterError, PlanError
from headwater.layout import Weights
from headwater.plan import MANIFEST, Plan


class Follower:
    """Carries out commands. `open_own` opens a plan on this rank."""

    def __init__(self, group: RankGroup, open_own: Callable[[Plan], TorchTrainer]) -> None:
        self._group = group
        self._open_own = open_own
        self._trainers: dict[str, SharedTrainer] = {}

    def follow(self) -> None:
        """Work until rank 0 ends.

        Raises:
            RanksBrokenError: a rank is gone.
        """
        while (message := self._group.receive()).command != "end":
            if message.command == "open":
                self._open(message)
            else:
                self._carry_out(self._trainers[message.values["plan"]], message)

    def _open(self, message: Message) -> None:
        members = {name: array.tobytes() for name, array in message.arrays.items()}
        kept = {*message.values["kept"]}
        self._trainers = {d: trainer for d, trainer in self._trainers.items() if d in kept}
        failure: Exception | None = None
        try:
            plan = Plan(members.pop(MANIFEST), members.__getitem__)
            figures = ("loss", *plan.manifest.metrics)
            shared = SharedTrainer(self._group, self._open_own(plan), figures)
            self._trainers[plan.digest] = shared
        except HeadwaterError as error:
            failure = error
        try:
            self._group.agree([], failure)
        except PlanError:
            self._trainers.pop(message.values["plan"], None)

    def _carry_out(self, trainer: SharedTrainer, message: Message) -> None:
        own, values, arrays = trainer.own, message.values, message.arrays
        match message.command:
            case "weights" | "weights within a round":
                weights = Weights(arrays["floats"], arrays["integers"])  # type: ignore[arg-type]
                own.set_weights(weights, anchor=message.command == "weights")
            case "reset":
                own.reset_optimizer()
            case "optimizer":
                own.set_optimizer_state(arrays)
            case "correction":
                own.set_correction(arrays or None)
            case "train" | "evaluate":
                self._share(trainer, message.command, values["share"], values, arrays)

    def _share(
        self,
        trainer: SharedTrainer,
        command: str,
        share: float,
        values: Mapping[str, object],
        arrays: Mapping[str, Array],
    ) -> None:
        """Take part in a step; a failure was told to rank 0, whose assignment it ends."""
        part = batch_from(arrays) if share else None
        try:
            if command == "train":
                trainer.train(part, share, values["hyperparameters"], values["seed"])  # type: ignore[arg-type]
            else:
                trainer.evaluate(part, share)
        except (PlanError, DataError):
            pass


def batch_from(arrays: Mapping[str, Array]) -> Batch:
    """A batch from its arrays by graph name."""
    inputs = sorted((name for name in arrays if name[0] == "x"), key=lambda name: int(name[1:]))
    targets = sorted((name for name in arrays if name[0] == "y"), key=lambda name: int(name[1:]))
    return Batch(
        tuple(arrays[name] for name in inputs), tuple(arrays[name] for name in targets),
        arrays.get("w"),
    )  # fmt: skip
