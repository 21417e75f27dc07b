"""Opened plans, trainers and data sources, kept from one assignment to the next.

Opening a runtime session or a data file can cost more than a round, so the last few stay open. All
of this runs in the work thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from edge_client.cache import BlobCache
from edge_client.trainers import Trainer
from headwater.batch import TensorSignature
from headwater.errors import DataError, NotFoundError, PlanError
from headwater.manifest import Manifest, Member
from headwater.plan import FROZEN, Plan
from headwater.sources import DataSource

_KEPT = 2

OpenTrainer = Callable[[Plan], Trainer]
OpenSource = Callable[[str, Sequence[TensorSignature], Sequence[TensorSignature]], DataSource]
K = TypeVar("K")
V = TypeVar("V")

MEMBERS = {
    "onnxruntime": ("train.onnx", "evaluate.onnx", FROZEN),
    "torch": ("forward.aten.json", "apply.aten.json", "evaluate.aten.json", FROZEN),
}
"""The members that each runtime needs; the initial weights come by an assignment's digest."""

HALVES = {"train.onnx": ("gradients.onnx", "apply.onnx")}
"""What takes the place of the whole step in a plan with micro-batches."""


@dataclass(frozen=True)
class Bench:
    """Everything that an assignment computes with."""

    plan: Plan
    trainer: Trainer
    source: DataSource


def members_of(manifest: Manifest, runtime: str) -> list[Member]:
    """The members that this runtime needs of a plan.

    Raises:
        PlanError: the plan does not have them.
    """
    wanted = list(MEMBERS[runtime])
    if manifest.step.micro_batch_size is not None:
        wanted = [half for name in wanted for half in HALVES.get(name, (name,))]
    names = [name for name in wanted if name in manifest.members]
    missing = set(wanted) - set(names) - {FROZEN}
    if missing:
        raise PlanError(
            f"the plan {manifest.name!r} has no {' or '.join(sorted(missing))}, which {runtime} "
            "needs: compile it again, or use another --trainer"
        )
    return [manifest.members[name] for name in names]


class Workbench:
    """Opens what assignments need. `data` maps data set names to bindings."""

    def __init__(
        self,
        cache: BlobCache,
        data: Mapping[str, str],
        open_trainer: OpenTrainer,
        open_source: OpenSource,
    ) -> None:
        self._cache = cache
        self._data = data
        self._open_trainer = open_trainer
        self._open_source = open_source
        self._plans: _Recent[str, tuple[Plan, Trainer]] = _Recent(_KEPT)
        self._sources: _Recent[tuple[str, str], DataSource] = _Recent(_KEPT)
        self.example_counts: dict[str, int] = {}

    def check_dataset(self, name: str) -> None:
        """Refuse a data set that this device does not have.

        Raises:
            NotFoundError: it is not bound; the message has those that are.
        """
        if name not in self._data:
            bound = ", ".join(sorted(self._data)) or "none"
            raise NotFoundError(
                f"this device has no data set {name!r} (it has: {bound}): bind it with "
                f"--data {name}=PATH"
            )

    def has_plan(self, digest: str) -> bool:
        """Whether the plan is open."""
        return digest in self._plans

    def open(self, plan_digest: str, dataset: str) -> Bench:
        """Everything for an assignment; the plan's blobs must be in the cache.

        Raises:
            PlanError: the plan is damaged or not runnable here.
            DataError: the data set does not fit the plan, or is empty.
            MissingExtraError: a package that the data or the trainer needs is not installed.
        """
        plan, trainer = self._plans.get(plan_digest, lambda: self._open_plan(plan_digest))
        inputs, targets = plan.manifest.inputs, plan.manifest.targets
        binding = self._data[dataset]
        source = self._sources.get(
            (binding, repr((inputs, targets))), lambda: self._open_source(binding, inputs, targets)
        )
        self.example_counts[dataset] = source.example_count()
        if self.example_counts[dataset] == 0:
            raise DataError(f"the data set {dataset!r} ({binding}) has no examples")
        return Bench(plan, trainer, source)

    def _open_plan(self, digest: str) -> tuple[Plan, Trainer]:
        plan = Plan.from_blobs(self._cache.read(digest), self._cache.read)
        return plan, self._open_trainer(plan)


class _Recent(Generic[K, V]):
    """The most recently used few values."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._values: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key not in self._values:
            # Let go before opening another: memory holds `kept` at most, never one more.
            while len(self._values) >= self._kept:
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]
