"""A job as data: what the job file says, with every default filled in.

`parse_job` (coordinator.jobs.job_file) reads it from TOML; `to_dict` and `from_dict` carry it
through JSON without loss. Each field declares what it allows, so that the checks, the messages and
the reference in docs/jobs.md come from one place.
"""
# ruff: noqa: RUF009  (`key` returns a dataclass field, which is what belongs there)

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coordinator.jobs.aggregation_spec import Aggregation
from coordinator.jobs.builder import Fault, build
from coordinator.jobs.key import Pattern, key
from coordinator.jobs.tensor import TENSOR_NAME, Tensor, signatures
from coordinator.jobs.train_spec import Train
from coordinator.jobs.where import parse_where
from headwater.batch import TensorSignature
from headwater.encodings.names import encoding_named, parts_of
from headwater.errors import JobFileError, UpdateError

AUTO = "auto"
"""The encoding of updates that the coordinator chooses for each client."""

_SLUG = Pattern(
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    "1 to 63 lower-case letters, digits and hyphens, a letter or digit first and last",
)
_DATASET = Pattern(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
    "1 to 63 letters, digits, dots, underscores and hyphens, a letter or digit first",
)
_REFERENCE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
_FACTORY = Pattern(_REFERENCE, '"module:name", such as "model:Net"')
_NAME_OR_FACTORY = Pattern(rf"[A-Za-z_]\w*|{_REFERENCE}", 'a name or "module:function"')
_UPDATES = Pattern(
    r"all|none|last [1-9]\d{0,8} rounds?",
    '"all", "none" or "last N rounds", such as "last 5 rounds"',
)
_START = Pattern(
    r"[a-z0-9-]+@(latest|\d+)|.+\.safetensors",
    '"JOB@VERSION", "JOB@latest" or the path of a .safetensors file',
)


def metric_name(metric: str) -> str:
    """The name under which a metric is recorded: `model:f1` is recorded as `f1`."""
    return metric.rpartition(":")[2]


def _where_fault(where: str) -> str | None:
    try:
        parse_where(where)
    except JobFileError as error:
        return str(error)
    return None


def _better_mode(values: Mapping[str, Any]) -> str:
    return "min" if metric_name(str(values.get("metric", ""))) == "loss" else "max"


def _metrics_fault(metrics: tuple[str, ...]) -> str | None:
    names = [metric_name(metric) for metric in metrics]
    if len(set(names)) < len(names):
        return "each metric once (they are recorded by the name after the colon)"
    for name in ("loss", "learning_rate"):
        if name in names:
            return f'"{name}" is recorded anyhow and no metric'
    return None


def _encoding_fault(name: str) -> str | None:
    if name == AUTO:
        return None
    try:
        encoding_named(name)
    except UpdateError as error:
        return str(error)
    return None


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Arguments of a named loss. They mean what they mean in torch; each loss has some of them."""

    label_smoothing: float | None = key(
        "For cross_entropy: the share spread over all classes.",
        value=None,
        minimum=0,
        maximum=1,
        default="0",
    )
    ignore_index: int | None = key(
        "For cross_entropy and nll_loss: targets that do not count.", value=None, default="-100"
    )
    weight: tuple[float, ...] = key(
        "A weight for each class.", value=(), minimum=0, default="all 1"
    )
    pos_weight: tuple[float, ...] = key(
        "For binary_cross_entropy_with_logits: how much positive targets count.",
        value=(),
        minimum=0,
        default="all 1",
    )
    beta: float | None = key(
        "For smooth_l1_loss: where the square ends.", value=None, above=0, default="1"
    )
    delta: float | None = key(
        "For huber_loss: where the square ends.", value=None, above=0, default="1"
    )
    margin: float | None = key("For the margin losses.", value=None, default="1")
    p: int | None = key(
        "For multi_margin_loss: the power.", value=None, minimum=1, maximum=2, default="1"
    )
    log_target: bool | None = key(
        "For kl_div: targets are logarithms.", value=None, default="false"
    )
    log_input: bool | None = key(
        "For poisson_nll_loss: outputs are logarithms.", value=None, default="true"
    )
    reduction: str | None = key(
        "For kl_div: the mean over all elements, or over examples.",
        value=None,
        choices=("mean", "batchmean"),
        default='"mean"',
    )

    @property
    def given(self) -> dict[str, Any]:
        """What the author set."""
        return {name: value for name, value in vars(self).items() if value not in (None, ())}


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained: the author's module, its loss and metrics, and what goes in and out."""

    factory: str = key(
        "The class or function that returns the `torch.nn.Module`, from a file in the job file's "
        "folder or an installed package.",
        pattern=_FACTORY,
    )
    loss: str = key(
        "A name of `torch.nn.functional` or your own `module:function`, called with "
        "(output, target).",
        pattern=_NAME_OR_FACTORY,
    )
    loss_settings: LossSettings = key(
        "Arguments of a named loss, such as { label_smoothing = 0.1 }.", factory=LossSettings
    )
    metrics: tuple[str, ...] = key(
        "Recorded besides the loss: names or your own `module:function`.",
        value=(),
        pattern=_NAME_OR_FACTORY,
        check=_metrics_fault,
    )
    input: Tensor | None = key("The model's input.", value=None, default="one of input, inputs")
    inputs: tuple[Tensor, ...] = key(
        "The model's inputs where it takes several, in the order of `forward`.",
        value=(),
        default="one of input, inputs",
    )
    target: Tensor | None = key(
        "What the output is compared with.", value=None, default="one of target, targets"
    )
    targets: tuple[Tensor, ...] = key(
        "The targets where the loss takes several, in its order.",
        value=(),
        default="one of target, targets",
    )
    call: str = key(
        "How `forward` takes the inputs: one after the other, by their names, or all of them as "
        "one dictionary by name.",
        value="positional",
        choices=("positional", "keywords", "dictionary"),
    )
    weight: str | None = key(
        "The column with a weight for each example, at least 0: the loss and the metrics become "
        "weighted means.",
        value=None,
        pattern=TENSOR_NAME,
        default="all examples count alike",
    )
    start: str | None = key(
        "Begin from earlier weights: a version of another job, or a safetensors file beside the "
        "job file.",
        value=None,
        pattern=_START,
        default="what the factory initializes",
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        for one, several in (("input", "inputs"), ("target", "targets")):
            given = [name for name in (one, several) if getattr(self, name)]
            if len(given) != 1:
                yield Fault(
                    (given[-1],) if given else (),
                    f"exactly one of {one} and {several} is allowed"
                    if given
                    else f"{one} is missing: such as {one} = {{ shape = [3], dtype = "
                    f'"float32" }}, or {several} with a list of them',
                )
        names = [one.name for one in (*self.input_signatures, *self.target_signatures)]
        names += [self.weight] if self.weight is not None else []
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault((), f'several inputs or targets are named "{name}": each needs its own')

    @property
    def input_signatures(self) -> tuple[TensorSignature, ...]:
        """The inputs in order, each with its name."""
        return signatures("x", self.inputs or ((self.input,) if self.input else ()))

    @property
    def target_signatures(self) -> tuple[TensorSignature, ...]:
        """The targets in order, each with its name."""
        return signatures("y", self.targets or ((self.target,) if self.target else ()))


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """When and where the global model is measured."""

    every: int = key("After every so many rounds, and after the last.", value=1, minimum=1)
    on: tuple[str, ...] = key(
        "On the clients' own data, and on the data that the coordinator holds out under the job's "
        "data set name; empty for never.",
        value=("clients",),
        choices=("clients", "coordinator"),
    )


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A metric, and which of its values are better."""

    metric: str = key('"loss" or one of the metrics.')
    mode: str = key(
        "Whether more or less is better.",
        choices=("max", "min"),
        infer=_better_mode,
        default='"min" for the loss, else "max"',
    )


@dataclass(frozen=True, kw_only=True)
class Stop(Goal):
    """End the job when a metric has stopped improving."""

    patience: int = key("Evaluations without improvement before the job ends.", minimum=1)
    minimum_change: float = key("What counts as an improvement.", value=0.0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class Guard(Goal):
    """Abandon a round whose model is worse on held-out data, and pause the job."""

    tolerance: float = key("How much worse than the best version so far it may be.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many rounds there are, who takes part and when one closes."""

    count: int = key("Rounds in the job.", minimum=1)
    cohort: int = key("Accepted updates that close a round.", minimum=1)
    over_selection: float = key(
        "Offered assignments for each update of the cohort, against clients that drop out.",
        value=1.0,
        minimum=1,
        maximum=10,
    )
    quorum: int = key(
        "The fewest updates with which a round commits, and attending clients with which it opens; "
        "at most the cohort.",
        minimum=1,
        infer=lambda values: values.get("cohort"),
        default="the cohort",
    )
    deadline_seconds: float = key(
        "How long a round waits for its cohort.", value=600.0, above=0, maximum=30 * 86400
    )
    grace_seconds: float = key(
        "How much longer it waits for uploads that are under way at its deadline.",
        value=0.0,
        minimum=0,
        maximum=86400,
    )
    without_quorum: str = key(
        "What becomes of a round that lacks its quorum at the deadline: it ends without changing "
        "the weights, it is given as long again, or it makes do with what came.",
        value="abandon",
        choices=("abandon", "extend", "lower"),
    )
    extensions: int = key(
        "How often a round is given as long again, before it is abandoned.",
        value=3,
        minimum=1,
        maximum=1000,
    )
    late: str = key(
        "What becomes of an update that comes after its round has ended: it is noted and not kept, "
        "or the next round folds it, with its weight divided by the square root of 1 + staleness.",
        value="discard",
        choices=("discard", "fold"),
    )
    largest_staleness: int = key(
        "How many versions old the base of a late update may be, to be folded.",
        value=10,
        minimum=0,
        maximum=1000,
    )
    largest_norm: float | None = key(
        "The largest L2 norm of an update's change; a larger one is rejected and kept as evidence.",
        value=None,
        above=0,
        default="any",
    )
    evaluate: Evaluate = key("When and where the model is measured.", factory=Evaluate)
    stop: Stop | None = key("Early stopping.", value=None, default="all rounds are run")
    guard: Guard | None = key(
        "What a new version must not lose.", value=None, default="a finite loss is all it needs"
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        if self.quorum > self.cohort:
            yield Fault(("quorum",), f"at most the cohort ({self.cohort})")
        if self.stop is not None and not self.evaluate.on:
            yield Fault(("stop",), "needs an evaluation: evaluate.on is empty")
        if self.guard is not None and "coordinator" not in self.evaluate.on:
            yield Fault(("guard",), 'needs held-out data: evaluate.on has no "coordinator"')


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Which clients may take part."""

    where: str = key(
        "A condition over tags and the device profile.",
        value="",
        check=_where_fault,
        default="every client that has the data set",
    )


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How a client's update becomes bytes."""

    encoding: str = key(
        'How the changes of trainable tensors are written: "fp32", "bf16", "int8", "int4", or '
        '"topk:FRACTION" for the largest alone (with ":int8" their values in 8 bits), each with '
        '"+zstd" compressed; "auto" for what each client\'s link carries in a tenth of the '
        "deadline. Buffers always travel exact.",
        value="fp32",
        check=_encoding_fault,
    )
    error_feedback: bool | None = key(
        "Whether a client adds what the encoding of its last update left out to its next one.",
        value=None,
        default="true for int4 and topk",
    )

    def feeds_back(self, encoding: str) -> bool:
        """Whether clients keep what this encoding leaves out: coarse ones fail without it."""
        is_coarse = not parts_of(encoding).isdisjoint({"int4", "topk"})
        return is_coarse if self.error_feedback is None else self.error_feedback


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of a job beside its history and its models."""

    updates: str | None = key(
        "Rounds of which the clients' updates stay on the coordinator's disk, to replay them. "
        "Those of a round that has not ended always stay.",
        value=None,
        pattern=_UPDATES,
        default="what the coordinator keeps (`--keep-update-rounds`)",
    )


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A whole job, checked."""

    name: str = key("The job's name.", pattern=_SLUG)
    dataset: str = key("The name that clients bind to their own files.", pattern=_DATASET)
    seed: int = key(
        "Every random choice of the job derives from it.", value=0, minimum=0, maximum=2**63 - 1
    )
    model: Model = key("What is trained.")
    train: Train = key("What a client does in one round.")
    rounds: Rounds = key("How many rounds there are, who takes part and when one closes.")
    aggregation: Aggregation = key("How a round's updates become one model.", factory=Aggregation)
    updates: Updates = key("How a client's update becomes bytes.", factory=Updates)
    clients: Clients = key("Which clients may take part.", factory=Clients)
    retention: Retention = key("What is kept of the job, and how long.", factory=Retention)

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the tables."""
        schedule = self.train.schedule
        if schedule is not None and schedule.warmup_rounds >= self.rounds.count:
            yield Fault(
                ("train", "schedule", "warmup_rounds"), f"below rounds.count ({self.rounds.count})"
            )
        measured = ("loss", *map(metric_name, self.model.metrics))
        for name, rule in (("stop", self.rounds.stop), ("guard", self.rounds.guard)):
            if rule is not None and rule.metric not in measured:
                yield Fault(("rounds", name, "metric"), f"one of {', '.join(measured)}")
        # A larger cohort loses more: what suits the quorum suits every round that commits.
        fewest = 1 if self.rounds.without_quorum == "lower" else self.rounds.quorum
        if refusal := self.aggregation.chosen.refusal(fewest):
            yield Fault(("aggregation", "trim"), f"{refusal} (the fewest that a round commits)")
        if self.rounds.late == "fold" and self.aggregation.rule != "weighted_mean":
            yield Fault(
                ("rounds", "late"),
                f'"discard" with the rule {self.aggregation.rule}, which counts every update once '
                "and cannot discount a stale one",
            )

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON-able values; keys that are not set are left out."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "JobSpec":
        """The job that `to_dict` or a TOML parser gave.

        Raises:
            JobFileError: every key that is wrong, one a line.
        """
        spec, faults = build(cls, values)
        if spec is None or faults:
            raise JobFileError("\n".join(fault.describe(values) for fault in faults))
        return spec


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
