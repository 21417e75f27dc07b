"""The file form of an `AtenGraph`: JSON, of which the same graph gives the same bytes.

    {"schema": 1, "inputs": [name, ...], "constants": [{"dtype", "shape", "base64"}, ...],
     "nodes": [[operator, [argument, ...], {keyword: argument}], ...],
     "outputs": [[name, value number], ...]}

An argument is `null`, a boolean, an integer of 64 bits, a list of arguments, a word of `WORDS`, or
an object with one key:

    {"value": 12}   another value          {"float": "0x1.8p+1"}   an exact number, inf or nan too
    {"dtype": "float32"}   {"memory_format": "contiguous_format"}   {"layout": "strided"}
    {"device": null}   the device of whoever runs the step

Reading it runs no code and trusts nothing; what is read is checked like any other graph.
"""

import base64
import binascii
import json
from math import prod
from typing import Any

import numpy as np

from headwater.aten import (
    DTYPES,
    MAXIMUM_CONSTANT_BYTES,
    MAXIMUM_DEPTH,
    SYMBOLS,
    AtenGraph,
    refused,
)
from headwater.aten_nodes import Argument, AtenNode, Device, Reference, Symbol
from headwater.batch import Array

SCHEMA = 1
MAXIMUM_BYTES = 16 * 2**20
_MAXIMUM_DIMENSIONS = 16


def write_graph(graph: AtenGraph) -> bytes:
    """Canonical JSON: sorted keys, no spaces.

    Raises:
        PlanError: the graph takes more than `MAXIMUM_BYTES`.
    """
    document = {
        "schema": SCHEMA,
        "inputs": list(graph.inputs),
        "constants": [_encode_constant(array) for array in graph.constants],
        "nodes": [
            [
                node.operator,
                [_encode(value) for value in node.arguments],
                {name: _encode(value) for name, value in node.keywords.items()},
            ]
            for node in graph.nodes
        ],
        "outputs": [[name, reference.index] for name, reference in graph.outputs],
    }
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > MAXIMUM_BYTES:
        raise refused(f"it takes {len(data)} bytes; the limit is {MAXIMUM_BYTES}")
    return data


def read_graph(data: bytes) -> AtenGraph:
    """Read and check a graph that may come from anyone.

    Raises:
        PlanError: the bytes are no such graph, with the place and the reason.
    """
    document = _parse(data)
    return AtenGraph(
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


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAXIMUM_BYTES:
        raise refused(f"it takes {len(data)} bytes; the limit is {MAXIMUM_BYTES}")
    try:
        document = json.loads(data)
    except RecursionError:
        raise refused("its JSON is nested too deep") from None
    except ValueError as error:  # bad JSON, bad UTF-8, integers of thousands of digits
        raise refused(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise refused("it is not a JSON object")
    schema = document.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise refused(f"its schema is {schema!r:.40}; this version reads {SCHEMA}")
    expected = {"schema", "inputs", "constants", "nodes", "outputs"}
    if set(document) != expected:
        raise refused(f"it must have the keys {sorted(expected)} and no others")
    return document


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise refused(f"{where}: a list is expected")
    return value


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
            raise refused(f"{where}: lists are nested too deep")
        return tuple(_decode(item, where, depth + 1) for item in value)
    if isinstance(value, dict):
        if len(value) != 1:
            raise refused(f"{where}: an argument object has one key, not {len(value)}")
        return _decode_tagged(*next(iter(value.items())), where)
    if isinstance(value, float):
        raise refused(f"{where}: a bare number with a point; floats are written in hexadecimal")
    if value is None or isinstance(value, bool | int | str):
        return value
    raise refused(f"{where}: an argument is a {type(value).__name__}")


def _decode_tagged(tag: str, value: Any, where: str) -> Argument:
    if tag == "value" and type(value) is int:
        return Reference(value)
    if tag == "float" and isinstance(value, str):
        return _decode_float(value, where)
    if tag == "device" and value is None:
        return Device()
    if tag in SYMBOLS and isinstance(value, str):
        return Symbol(tag, value)
    raise refused(f"{where}: {tag!r:.40} with a {type(value).__name__} is no argument")


def _decode_float(text: str, where: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        raise refused(f"{where}: {text!r:.40} is no float in hexadecimal") from None


def _decode_node(item: Any, index: int) -> AtenNode:
    where = f"node {index}"
    match item:
        case [str(operator), list(arguments), dict(keywords)]:
            return AtenNode(
                operator,
                tuple(_decode(value, where) for value in arguments),
                {name: _decode(value, where) for name, value in keywords.items()},
            )
    raise refused(f"{where}: it is not [operator, [arguments], {{keywords}}]")


def _decode_output(item: Any) -> tuple[str, Reference]:
    match item:
        case [str(name), int(index)] if not isinstance(index, bool):
            return name, Reference(index)
    raise refused("outputs: an item is not [name, value number]")


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
    raise refused(f"{where}: it is not {{dtype, shape, base64}}")


def _array(dtype: str, shape: list[Any], text: str, where: str) -> Array:
    if dtype not in DTYPES:
        raise refused(f"{where}: {dtype!r:.40} is not an allowed dtype")
    sizes_are_valid = len(shape) <= _MAXIMUM_DIMENSIONS and all(
        type(size) is int and 0 <= size <= MAXIMUM_CONSTANT_BYTES for size in shape
    )
    if not sizes_are_valid:
        raise refused(f"{where}: its shape is out of range")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refused(f"{where}: its values are not base64") from None
    little = np.dtype(dtype).newbyteorder("<")
    if len(data) != prod(shape) * little.itemsize:
        raise refused(f"{where}: {len(data)} bytes do not fill shape {shape} of {dtype}")
    return np.frombuffer(data, little).reshape(shape).astype(dtype)
