"""What rank 0 tells the others: a command with a few values, and arrays. Nothing is unpickled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headwater.batch import Array

_HEADER_BYTES = 8


@dataclass(frozen=True)
class Message:
    """`values` are what JSON can hold."""

    command: str
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def encode(self) -> Array:
        """The message as uint8: the header's length, the header, the arrays' bytes."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        forms = {name: [a.dtype.str, a.shape] for name, a in arrays.items()}
        header = json.dumps([self.command, dict(self.values), forms]).encode()
        parts = [len(header).to_bytes(_HEADER_BYTES, "little"), header]
        parts += [array.tobytes() for array in arrays.values()]
        return np.frombuffer(bytearray(b"".join(parts)), np.uint8)

    @classmethod
    def decode(cls, data: Array) -> "Message":
        """The message that `encode` made."""
        content = data.tobytes()
        start = _HEADER_BYTES + int.from_bytes(content[:_HEADER_BYTES], "little")
        command, values, forms = json.loads(content[_HEADER_BYTES:start])
        arrays = {}
        for name, (kind, shape) in forms.items():
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(content, kind, count, start).reshape(shape).copy()
            start += arrays[name].nbytes
        return cls(command, values, arrays)
