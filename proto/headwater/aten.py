"""A training step as a graph of ATen calls, in JSON: what a torch client runs.

    {"schema": 1, "inputs": [name, ...], "constants": [{"dtype", "shape", "base64"}, ...],
     "nodes": [[operator, [argument, ...], {keyword: argument}], ...],
     "outputs": [[name, value number], ...]}

Values are numbered: the inputs, then the constants, then one for each node in order. A node may
refer only to values before it, so there are no cycles. An argument is `null`, a boolean, an integer
of 64 bits, a list of arguments, a word of `WORDS`, or an object with one key:

    {"value": 12}   another value          {"float": "0x1.8p+1"}   an exact number, inf or nan too
    {"dtype": "float32"}   {"memory_format": "contiguous_format"}   {"layout": "strided"}
    {"device": null}   the device of whoever runs the step

This is data and nothing else: reading it runs no code, and an operator that is not in
`headwater.aten_operators.OPERATORS` is refused. The same graph gives the same bytes.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn, TypeAlias

import numpy as np

from headwater.aten_operators import OPERATORS, WORDS
from headwater.batch import Array
from headwater.errors import PlanError

SCHEMA = 1
MAXIMUM_BYTES = 16 * 2**20
MAXIMUM_NODES = 200_000
MAXIMUM_CONSTANT_BYTES = 2**20
"""All constants of a graph together. Weights are inputs, so constants are masks and positions."""
MAXIMUM_DEPTH = 4
MAXIMUM_DIMENSIONS = 16

_INTEGERS = range(-(2**63), 2**63)
_CONSTANT_DTYPES = frozenset(
    "bool uint8 int8 int16 int32 int64 float16 float32 float64".split()  # noqa: SIM905
)
_SYMBOLS = {
    "dtype": _CONSTANT_DTYPES,
    "memory_format": frozenset({"contiguous_format", "preserve_format", "channels_last"}),
    "layout": frozenset({"strided"}),
}


@dataclass(frozen=True)
class Reference:
    """The value with this number."""

    index: int


@dataclass(frozen=True)
class Symbol:
    """A torch constant: `kind` is dtype, memory_format or layout."""

    kind: str
    name: str


@dataclass(frozen=True)
class Device:
    """Whichever device runs the step."""


Argument: TypeAlias = (
    "bool | int | float | str | Reference | Symbol | Device | tuple[Argument, ...] | None"
)


@dataclass(frozen=True)
class AtenNode:
    """One call: its result is the next value."""

    operator: str
    arguments: tuple[Argument, ...]
    keywords: dict[str, Argument] = field(default_factory=dict)


@dataclass(frozen=True)
class AtenGraph:
    """A checked graph.

    Raises:
        PlanError: an operator is not allowed, a reference points forward, or a limit is passed.
    """

    inputs: tuple[str, ...]
    constants: tuple[Array, ...]
    nodes: tuple[AtenNode, ...]
    outputs: tuple[tuple[str, Reference], ...]

    def __post_init__(self) -> None:
        _check_names("inputs", self.inputs)
        _check_names("outputs", tuple(name for name, _ in self.outputs))
        _check_constants(self.constants)
        if len(self.nodes) > MAXIMUM_NODES:
            _refuse(f"it has {len(self.nodes)} nodes; the limit is {MAXIMUM_NODES}")
        first = len(self.inputs) + len(self.constants)
        for index, node in enumerate(self.nodes):
            _check_node(node, index, first + index)
        for name, reference in self.outputs:
            _check_argument(reference, first + len(self.nodes), f"output {name!r}")

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        document = {
            "schema": SCHEMA,
            "inputs": list(self.inputs),
            "constants": [_encode_constant(array) for array in self.constants],
            "nodes": [
                [
                    node.operator,
                    [_encode(value) for value in node.arguments],
                    {name: _encode(value) for name, value in node.keywords.items()},
                ]
                for node in self.nodes
            ],
            "outputs": [[name, reference.index] for name, reference in self.outputs],
        }
        data = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        if len(data) > MAXIMUM_BYTES:
            _refuse(f"it takes {len(data)} bytes; the limit is {MAXIMUM_BYTES}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "AtenGraph":
        """Read and check a graph that may come from anyone.

        Raises:
            PlanError: the bytes are no such graph, with the place and the reason.
        """
        document = _parse(data)
        return cls(
            inputs=tuple(_list(document["inputs"], "inputs")),
            constants=tuple(
                _decode_constant(item, f"constant {index}")
                for index, item in enumerate(_list(document["constants"], "constants"))
            ),
            nodes=tuple(
                _decode_node(item, index)
                for index, item in enumerate(_list(document["nodes"], "nodes"))
            ),
            outputs=tuple(_decode_output(item) for item in _list(document["outputs"], "outputs")),
        )


def references(value: Argument) -> Iterator[Reference]:
    """Every reference inside an argument."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from references(item)


def _refuse(reason: str) -> NoReturn:
    raise PlanError(
        f"the plan's torch step is refused: {reason}. Compile the plan again with this version of "
        "headwater, or don't trust where it came from"
    )


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAXIMUM_BYTES:
        _refuse(f"it takes {len(data)} bytes; the limit is {MAXIMUM_BYTES}")
    try:
        document = json.loads(data)
    except RecursionError:
        _refuse("its JSON is nested too deep")
    except ValueError as error:  # bad JSON, bad UTF-8, integers of thousands of digits
        _refuse(f"it is not JSON ({error})")
    if not isinstance(document, dict):
        _refuse("it is not a JSON object")
    schema = document.get("schema")
    if schema != SCHEMA:
        _refuse(f"its schema is {schema!r:.40}; this version reads {SCHEMA}")
    expected = {"schema", "inputs", "constants", "nodes", "outputs"}
    if set(document) != expected:
        _refuse(f"it must have the keys {sorted(expected)} and no others")
    return document


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"{where}: a list is expected")
    return value


def _check_names(where: str, names: tuple[str, ...]) -> None:
    if not all(isinstance(name, str) and 0 < len(name) <= 512 for name in names):
        _refuse(f"{where}: every name is a text of 1 to 512 characters")
    if len(set(names)) != len(names):
        _refuse(f"{where}: a name occurs twice")


def _check_constants(constants: tuple[Array, ...]) -> None:
    total = sum(array.nbytes for array in constants)
    if total > MAXIMUM_CONSTANT_BYTES:
        _refuse(f"its constants take {total} bytes; the limit is {MAXIMUM_CONSTANT_BYTES}")


def _check_node(node: AtenNode, index: int, value: int) -> None:
    if not isinstance(node.operator, str) or node.operator not in OPERATORS:
        _refuse(f"node {index} calls {node.operator!r:.80}, which is not an allowed operator")
    where = f"node {index} ({node.operator})"
    for argument in node.arguments:
        _check_argument(argument, value, where)
    for name, argument in node.keywords.items():
        if not (name.isascii() and name.isidentifier()):
            _refuse(f"{where}: {name!r:.80} is no argument's name")
        _check_argument(argument, value, where)


def _check_argument(argument: Argument, before: int, where: str, depth: int = 0) -> None:
    """Refuse what no compiler of ours writes; `before` bounds the references."""
    if depth > MAXIMUM_DEPTH:
        _refuse(f"{where}: lists are nested too deep")
    match argument:
        case tuple():
            for item in argument:
                _check_argument(item, before, where, depth + 1)
        case Reference(index):
            if not 0 <= index < before:
                _refuse(f"{where}: it refers to value {index}, which is not computed before it")
        case Symbol(kind, name):
            if name not in _SYMBOLS.get(kind, ()):
                _refuse(f"{where}: {name!r:.40} is not an allowed {kind:.40}")
        case str():
            if argument not in WORDS:
                _refuse(f"{where}: {argument!r:.40} is not an allowed word")
        case int():
            if argument not in _INTEGERS:
                _refuse(f"{where}: an integer has more than 64 bits")
        case None | float() | Device():
            pass
        case _:
            _refuse(f"{where}: an argument is a {type(argument).__name__}")


def _encode(value: Argument) -> Any:
    match value:
        case tuple():
            return [_encode(item) for item in value]
        case float():
            return {"float": value.hex()}
        case Reference(index):
            return {"value": index}
        case Symbol(kind, name):
            return {kind: name}
        case Device():
            return {"device": None}
    return value


def _decode(value: Any, where: str, depth: int = 0) -> Argument:
    if isinstance(value, list):
        if depth > MAXIMUM_DEPTH:
            _refuse(f"{where}: lists are nested too deep")
        return tuple(_decode(item, where, depth + 1) for item in value)
    if isinstance(value, dict):
        if len(value) != 1:
            _refuse(f"{where}: an argument object has one key, not {len(value)}")
        return _decode_tagged(*next(iter(value.items())), where)
    if isinstance(value, float):
        _refuse(f"{where}: a bare number with a point; floats are written in hexadecimal")
    if value is None or isinstance(value, bool | int | str):
        return value
    _refuse(f"{where}: an argument is a {type(value).__name__}")


def _decode_tagged(tag: str, value: Any, where: str) -> Argument:
    if tag == "value" and type(value) is int:
        return Reference(value)
    if tag == "float" and isinstance(value, str):
        return _decode_float(value, where)
    if tag == "device" and value is None:
        return Device()
    if tag in _SYMBOLS and isinstance(value, str):
        return Symbol(tag, value)
    _refuse(f"{where}: {tag!r:.40} with a {type(value).__name__} is no argument")


def _decode_float(text: str, where: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        _refuse(f"{where}: {text!r:.40} is no float in hexadecimal")


def _decode_node(item: Any, index: int) -> AtenNode:
    where = f"node {index}"
    match item:
        case [str(operator), list(arguments), dict(keywords)]:
            return AtenNode(
                operator,
                tuple(_decode(value, where) for value in arguments),
                {name: _decode(value, where) for name, value in keywords.items()},
            )
    _refuse(f"{where}: it is not [operator, [arguments], {{keywords}}]")


def _decode_output(item: Any) -> tuple[str, Reference]:
    match item:
        case [str(name), int(index)] if not isinstance(index, bool):
            return name, Reference(index)
    _refuse("outputs: an item is not [name, value number]")


def _encode_constant(array: Array) -> dict[str, Any]:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def _decode_constant(item: Any, where: str) -> Array:
    match item:
        case {"dtype": str(dtype), "shape": list(shape), "base64": str(text), **rest} if not rest:
            return _array(dtype, shape, text, where)
    _refuse(f"{where}: it is not {{dtype, shape, base64}}")


def _array(dtype: str, shape: list[Any], text: str, where: str) -> Array:
    if dtype not in _CONSTANT_DTYPES:
        _refuse(f"{where}: {dtype!r:.40} is not an allowed dtype")
    sizes_are_valid = len(shape) <= MAXIMUM_DIMENSIONS and all(
        type(size) is int and 0 <= size <= MAXIMUM_CONSTANT_BYTES for size in shape
    )
    if not sizes_are_valid:
        _refuse(f"{where}: its shape is out of range")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"{where}: its values are not base64")
    little = np.dtype(dtype).newbyteorder("<")
    if len(data) != prod(shape) * little.itemsize:
        _refuse(f"{where}: {len(data)} bytes do not fill shape {shape} of {dtype}")
    return np.frombuffer(data, little).reshape(shape).astype(dtype)
