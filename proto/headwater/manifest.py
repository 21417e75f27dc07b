"""The manifest of a plan: what a training step needs, gives and contains, as JSON.

The plan's identity is the SHA-256 of the manifest's bytes, so encoding is canonical: sorted keys,
no spaces, one way to write each value.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, prod
from typing import Any, TypeVar

from headwater.batch import TensorSignature
from headwater.errors import PlanError
from headwater.layout import Layout, Role, TensorSpec
from headwater.preparation import MAXIMUM_CHARACTERS, Image, Text

T = TypeVar("T")

SCHEMA = 1
"""The manifest schema that this version writes and reads."""

MAXIMUM_MANIFEST_BYTES = 16 * 2**20
"""Room for some 50,000 tensors; a larger manifest is refused before it is parsed."""

MAXIMUM_ELEMENTS = 2**31
"""Of the model's tensors together, and of one example: shapes are claims until data comes."""
MAXIMUM_DIMENSIONS = 16
MAXIMUM_NAME_CHARACTERS = 512

DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
"""What tensors, inputs and targets may hold."""


@dataclass(frozen=True)
class Member:
    """One file of a plan, by content."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class GraphPort:
    """The names of a graph's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """One tensor of optimizer state; `tensor` is None for a scalar that all tensors share.

    Every element is `initial` before the first step.
    """

    name: str
    tensor: str | None
    shape: tuple[int, ...]
    initial: float = 0.0

    @property
    def value_name(self) -> str:
        """The name of this slot's graph input."""
        return f"o.{self.name}" if self.tensor is None else f"o.{self.name}.{self.tensor}"


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable tensors that are updated alike: the optimizer's settings for them, all but the
    learning rate, which is multiplied by `learning_rate_scale`. Constants in the graphs."""

    settings: Mapping[str, float | bool]
    learning_rate_scale: float
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class OptimizerSpec:
    """The local optimizer; each trainable tensor is in exactly one group."""

    name: str
    groups: tuple[ParameterGroup, ...]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class StepSpec:
    """What a step does beyond forward, backward and optimizer.

    A gradient is clipped to `clip_norm` over all tensors, or each element to `clip_value`; None
    leaves it. `micro_batch_size` is the most examples to compute at once: the gradients of larger
    batches are accumulated (`gradients`, then `apply`). `corrections` says whether the step takes
    `c.` inputs; it takes `a.` inputs where there is a hyperparameter `proximal`.
    """

    clip_norm: float | None = None
    clip_value: float | None = None
    micro_batch_size: int | None = None
    corrections: bool = False


@dataclass(frozen=True)
class BatchCost:
    """An estimate that grows with the batch: `fixed + per_example * batch size`."""

    fixed: int
    per_example: int

    def total(self, batch_size: int) -> int:
        """The amount for a batch of this size."""
        return self.fixed + self.per_example * batch_size


@dataclass(frozen=True)
class Manifest:
    """Everything about a plan but the bytes of its members.

    `hyperparameters` holds the default of each value that a job may change without compiling again.
    `operations` counts the floating-point operations of a training step's matrix products and
    convolutions. `parity` holds the figures that the compiler's gate measured. The author's
    module has a `state_dict` of the plan's tensors, but for those in `transient`, and for
    `aliases`: further keys of tied tensors, with the plan's name for them.
    """

    name: str
    versions: Mapping[str, str]
    opset: int
    tensors: tuple[TensorSpec, ...]
    inputs: tuple[TensorSignature, ...]
    targets: tuple[TensorSignature, ...]
    metrics: tuple[str, ...]
    optimizer: OptimizerSpec
    hyperparameters: Mapping[str, float]
    uses_seed: bool
    batch_size: int
    graphs: Mapping[str, GraphPort]
    peak_memory_bytes: BatchCost
    operations: BatchCost
    parity: Mapping[str, float]
    members: Mapping[str, Member]
    aliases: Mapping[str, str] = field(default_factory=dict)
    transient: tuple[str, ...] = ()
    step: StepSpec = StepSpec()
    schema: int = SCHEMA

    @property
    def layout(self) -> Layout:
        """The order and offsets of the model's tensors."""
        return Layout(self.tensors)

    @property
    def anchored(self) -> bool:
        """Whether the step takes the weights of the round's start, for its proximal term."""
        return "proximal" in self.hyperparameters

    @property
    def weighted(self) -> bool:
        """Whether the examples have weights, which are then the last of the targets."""
        return bool(self.targets) and self.targets[-1].is_weight

    def step_memory_bytes(self, batch_size: int) -> int:
        """The estimated peak memory of a step over a batch, cut where the plan cuts it."""
        at_once = min(batch_size, self.step.micro_batch_size or batch_size)
        return self.peak_memory_bytes.total(at_once)

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests give equal bytes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parse a manifest.

        Raises:
            PlanError: not JSON, of a newer schema, or with missing or wrong fields.
        """
        if len(data) > MAXIMUM_MANIFEST_BYTES:
            raise PlanError(
                f"the plan's manifest has {len(data)} bytes; the limit is {MAXIMUM_MANIFEST_BYTES}"
            )
        try:
            fields = json.loads(data)
        except ValueError as error:
            raise PlanError(f"the plan's manifest is not JSON ({error}): it is damaged") from error
        except RecursionError:
            raise PlanError("the plan's manifest is nested too deep: it is damaged") from None
        _check_schema(fields)
        try:
            return _consistent(_manifest(fields))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise PlanError(
                f"the plan's manifest has a missing or wrong field ({reason})"
            ) from error


def _check_schema(fields: Any) -> None:
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if type(schema) is not int or schema < 1:
        raise PlanError("the plan's manifest names no schema: this is not a Headwater plan")
    if schema > SCHEMA:
        raise PlanError(
            f"the plan has schema {schema}; this version of headwater reads up to {SCHEMA}: "
            "upgrade headwater on this machine, or compile the plan with the older version"
        )


def _manifest(fields: dict[str, Any]) -> Manifest:
    optimizer = fields["optimizer"]
    return Manifest(
        name=_name(fields["name"]),
        versions={_name(key): _name(value) for key, value in fields["versions"].items()},
        opset=_typed(fields["opset"], int),
        tensors=tuple(map(_tensor, fields["tensors"])),
        inputs=tuple(map(_signature, fields["inputs"])),
        targets=tuple(map(_signature, fields["targets"])),
        metrics=_strings(fields["metrics"]),
        optimizer=OptimizerSpec(
            _name(optimizer["name"]),
            tuple(map(_group, optimizer["groups"])),
            tuple(map(_slot, optimizer["slots"])),
        ),
        hyperparameters=_numbers(fields["hyperparameters"]),
        uses_seed=_typed(fields["uses_seed"], bool),
        batch_size=_positive(fields["batch_size"]),
        graphs={_name(key): _port(value) for key, value in fields["graphs"].items()},
        peak_memory_bytes=_cost(fields["peak_memory_bytes"]),
        operations=_cost(fields["operations"]),
        parity=_numbers(fields["parity"]),
        members={key: _member(value) for key, value in fields["members"].items()},
        aliases={_name(key): _name(value) for key, value in fields["aliases"].items()},
        transient=_strings(fields["transient"]),
        step=_step(fields["step"]),
        schema=fields["schema"],
    )


def _consistent(manifest: Manifest) -> Manifest:
    """The manifest, if its parts fit one another and claim no impossible amounts."""
    shapes = {spec.name: spec.shape for spec in manifest.tensors if spec.role is Role.TRAINABLE}
    for slot in manifest.optimizer.slots:
        if slot.shape != (() if slot.tensor is None else shapes[slot.tensor]):
            raise ValueError(f"slot {slot.value_name!r:.80} has another shape than its tensor")
    grouped = [name for group in manifest.optimizer.groups for name in group.tensors]
    if sorted(grouped) != sorted(shapes):
        raise ValueError("the optimizer's groups do not hold each trainable tensor once")
    for signature in (*manifest.inputs, *manifest.targets[:-1]):
        if signature.is_weight:
            raise ValueError(f"{signature.name!r:.80} is a weight and not the last target")
    last = manifest.targets[-1] if manifest.weighted else None
    if last is not None and (last.shape, last.dtype) != ((), "float32"):
        raise ValueError(f"{last.name!r:.80}: weights are one float32 an example")
    if sum(spec.count for spec in manifest.tensors) > MAXIMUM_ELEMENTS:
        raise ValueError(f"the tensors have more than {MAXIMUM_ELEMENTS} elements")
    names = {spec.name for spec in manifest.tensors}
    if not names >= {*manifest.aliases.values(), *manifest.transient}:
        raise ValueError("aliases or transient name a tensor that is not there")
    if names & set(manifest.aliases):
        raise ValueError("an alias has the name of a tensor")
    if manifest.layout.trainable_count == 0:
        raise ValueError("no tensor is trainable")
    return manifest


def _tensor(item: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        _name(item["name"]),
        _shape(item["shape"]),
        _dtype(item["dtype"]),
        Role(item["role"]),
        _typed(item["positive"], bool),
    )


def _signature(item: dict[str, Any]) -> TensorSignature:
    signature = TensorSignature(
        _name(item["name"]),
        _shape(item["shape"]),
        _dtype(item["dtype"]),
        _optional(item["maximum"], _positive),
        _optional(item["image"], _image),
        _optional(item["text"], _text),
        _strings(item["labels"]),
        _typed(item["is_weight"], bool),
    )
    fault = signature.fault()
    if fault:
        raise ValueError(f"{signature.name!r}: {fault:.200}")
    return signature


def _image(item: dict[str, Any]) -> Image:
    return Image(
        tuple(map(_number, _typed(item["mean"], list))),
        tuple(map(_number, _typed(item["standard_deviation"], list))),
        _optional(item["flip"], _name),
        _natural(item["crop_padding"]),
    )


def _text(item: dict[str, Any]) -> Text:
    return Text(
        _characters(item["characters"]),
        _optional(item["unknown"], _characters),
        _optional(item["padding"], _characters),
        _natural(item["skip"]),
    )


def _slot(item: dict[str, Any]) -> Slot:
    tensor = item["tensor"]
    return Slot(
        _name(item["name"]),
        None if tensor is None else _name(tensor),
        _shape(item["shape"]),
        _number(item["initial"]),
    )


def _group(item: dict[str, Any]) -> ParameterGroup:
    return ParameterGroup(
        {_name(key): _setting(value) for key, value in item["settings"].items()},
        _number(item["learning_rate_scale"]),
        _strings(item["tensors"]),
    )


def _step(item: dict[str, Any]) -> StepSpec:
    norm, value, size = (item[key] for key in ("clip_norm", "clip_value", "micro_batch_size"))
    return StepSpec(
        None if norm is None else _number(norm),
        None if value is None else _number(value),
        None if size is None else _positive(size),
        _typed(item["corrections"], bool),
    )


def _port(item: dict[str, Any]) -> GraphPort:
    return GraphPort(_strings(item["inputs"]), _strings(item["outputs"]))


def _cost(item: dict[str, Any]) -> BatchCost:
    return BatchCost(_natural(item["fixed"]), _natural(item["per_example"]))


def _member(item: dict[str, Any]) -> Member:
    digest = _typed(item["digest"], str)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest")
    return Member(digest, _natural(item["size_bytes"]))


def _optional(value: Any, parse: Callable[[Any], T]) -> T | None:
    return None if value is None else parse(value)


def _characters(value: Any) -> str:
    """Characters of a table: printable or not, but none of half a pair."""
    text = _typed(value, str)
    if len(text) > MAXIMUM_CHARACTERS:
        raise ValueError(f"{len(text)} characters are too many")
    text.encode()
    return text


def _typed(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is not a {kind.__name__}")
    return value


def _natural(value: Any) -> int:
    if _typed(value, int) < 0:
        raise ValueError(f"{value} is negative")
    return int(value)


def _positive(value: Any) -> int:
    if _natural(value) == 0:
        raise ValueError("0 where a positive number belongs")
    return int(value)


def _shape(values: Any) -> tuple[int, ...]:
    shape = tuple(_natural(value) for value in _typed(values, list))
    too_many = max(shape, default=0) > MAXIMUM_ELEMENTS or prod(shape) > MAXIMUM_ELEMENTS
    if len(shape) > MAXIMUM_DIMENSIONS or too_many:
        raise ValueError(f"the shape {list(shape)!r:.80} is too large")
    return shape


def _strings(values: Any) -> tuple[str, ...]:
    return tuple(_name(value) for value in _typed(values, list))


def _name(value: Any) -> str:
    """A name that is safe to print: no control characters, not too long."""
    text = _typed(value, str)
    if not 0 < len(text) <= MAXIMUM_NAME_CHARACTERS or not text.isprintable():
        raise ValueError(
            f"{text!r:.80} is no name of 1 to {MAXIMUM_NAME_CHARACTERS} printable characters"
        )
    return text


def _dtype(value: Any) -> str:
    if value not in DTYPES:
        raise ValueError(f"the dtype {value!r:.80} is not one of {', '.join(DTYPES)}")
    return str(value)


def _setting(value: Any) -> float | bool:
    return value if type(value) is bool else _number(value)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {_name(key): float(_number(value)) for key, value in values.items()}


def _number(value: Any) -> float:
    """An integer or a float as it stands, since the manifest's bytes depend on which it is."""
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{value!r:.80} is not a finite number")
    number: float = value
    return number
