"""The manifest of a plan: what a training step needs, gives and contains, as JSON.

The plan's identity is the SHA-256 of the manifest's bytes, so encoding is canonical: sorted keys,
no spaces, one way to write each value.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from headwater.batch import TensorSignature
from headwater.errors import PlanError
from headwater.layout import Layout, Role, TensorSpec

T = TypeVar("T")

SCHEMA = 1
"""The manifest schema that this version writes and reads."""

MAXIMUM_MANIFEST_BYTES = 16 * 2**20
"""Room for some 50,000 tensors; a larger manifest is refused before it is parsed."""


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
    """One tensor of optimizer state; `tensor` is None for a scalar that all tensors share."""

    name: str
    tensor: str | None
    shape: tuple[int, ...]

    @property
    def value_name(self) -> str:
        """The name of this slot's graph input."""
        return f"o.{self.name}" if self.tensor is None else f"o.{self.name}.{self.tensor}"


@dataclass(frozen=True)
class OptimizerSpec:
    """The local optimizer. All its settings but the learning rate are constants in the graphs."""

    name: str
    settings: Mapping[str, float | bool]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class PeakMemory:
    """An estimate of a training step's memory: `fixed + per_example * batch size` bytes."""

    fixed: int
    per_example: int

    def total(self, batch_size: int) -> int:
        """Bytes for a batch of this size."""
        return self.fixed + self.per_example * batch_size


@dataclass(frozen=True)
class Manifest:
    """Everything about a plan but the bytes of its members.

    `hyperparameters` holds the default of each value that a job may change without compiling again.
    `parity` holds the figures that the compiler's gate measured.
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
    peak_memory_bytes: PeakMemory
    parity: Mapping[str, float]
    members: Mapping[str, Member]
    schema: int = SCHEMA

    @property
    def layout(self) -> Layout:
        """The order and offsets of the model's tensors."""
        return Layout(self.tensors)

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
        _check_schema(fields)
        try:
            return _manifest(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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
    peak = fields["peak_memory_bytes"]
    return Manifest(
        name=_typed(fields["name"], str),
        versions={str(key): str(value) for key, value in fields["versions"].items()},
        opset=_typed(fields["opset"], int),
        tensors=tuple(map(_tensor, fields["tensors"])),
        inputs=tuple(map(_signature, fields["inputs"])),
        targets=tuple(map(_signature, fields["targets"])),
        metrics=_strings(fields["metrics"]),
        optimizer=OptimizerSpec(
            _typed(optimizer["name"], str),
            dict(optimizer["settings"]),
            tuple(map(_slot, optimizer["slots"])),
        ),
        hyperparameters={key: float(value) for key, value in fields["hyperparameters"].items()},
        uses_seed=_typed(fields["uses_seed"], bool),
        batch_size=_positive(fields["batch_size"]),
        graphs={key: _port(value) for key, value in fields["graphs"].items()},
        peak_memory_bytes=PeakMemory(_natural(peak["fixed"]), _natural(peak["per_example"])),
        parity={key: float(value) for key, value in fields["parity"].items()},
        members={key: _member(value) for key, value in fields["members"].items()},
        schema=fields["schema"],
    )


def _tensor(item: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        _typed(item["name"], str),
        _shape(item["shape"]),
        _typed(item["dtype"], str),
        Role(item["role"]),
        _typed(item["positive"], bool),
    )


def _signature(item: dict[str, Any]) -> TensorSignature:
    maximum = item["maximum"]
    return TensorSignature(
        _typed(item["name"], str),
        _shape(item["shape"]),
        _typed(item["dtype"], str),
        None if maximum is None else _positive(maximum),
    )


def _slot(item: dict[str, Any]) -> Slot:
    tensor = item["tensor"]
    return Slot(
        _typed(item["name"], str),
        None if tensor is None else _typed(tensor, str),
        _shape(item["shape"]),
    )


def _port(item: dict[str, Any]) -> GraphPort:
    return GraphPort(_strings(item["inputs"]), _strings(item["outputs"]))


def _member(item: dict[str, Any]) -> Member:
    digest = _typed(item["digest"], str)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest")
    return Member(digest, _natural(item["size_bytes"]))


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
    return tuple(_natural(value) for value in values)


def _strings(values: Any) -> tuple[str, ...]:
    return tuple(_typed(value, str) for value in values)
