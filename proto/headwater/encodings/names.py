"""The one table of encodings: what a job file, the wire and the ledger can name."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from headwater.encodings.compressed import Compressed
from headwater.encodings.encoding import Encoding
from headwater.encodings.floats import Bfloat16, Float32
from headwater.encodings.integers import INT4, INT8
from headwater.encodings.top import Top
from headwater.errors import UpdateError

EXACT: Encoding = Float32()
"""What buffers always travel in."""

PLAIN: Mapping[str, Encoding] = MappingProxyType(
    {one.name: one for one in (EXACT, Bfloat16(), INT8, INT4)}
)
TOP = "topk"
ZSTD = "zstd"
PARTS = (*PLAIN, TOP, ZSTD)
"""What names are made of: a client says which of these it can write."""

_WORDS = {"fp32": 4, "bf16": 2}

_TOP = re.compile(rf"{TOP}:(?P<fraction>[0-9.e-]{{1,24}})(:(?P<values>int8))?")


@lru_cache(maxsize=64)
def encoding_named(name: str) -> Encoding:
    """The encoding of that name: `fp32`, `bf16`, `int8`, `int4`, `topk:0.01`, `topk:0.01:int8`,
    and each of them with `+zstd` after it.

    Raises:
        UpdateError: this program knows none.
    """
    inner = _uncompressed(name.removesuffix(f"+{ZSTD}"))
    if inner is None:
        known = ", ".join((*PLAIN, f"{TOP}:FRACTION"))
        raise UpdateError(
            f"unknown update encoding {name[:80]!r}; known: {known}, each also with +{ZSTD}"
        )
    if name.endswith(f"+{ZSTD}"):
        return Compressed(inner, _WORDS.get(inner.name, 1))
    return inner


def _uncompressed(name: str) -> Encoding | None:
    if name in PLAIN:
        return PLAIN[name]
    found = _TOP.fullmatch(name)
    if found is None:
        return None
    try:
        fraction = float(found["fraction"])
    except ValueError:
        return None
    return Top(fraction, PLAIN[found["values"] or "bf16"]) if 0 < fraction <= 1 else None


def parts_of(name: str) -> frozenset[str]:
    """What a client must be able to write for an encoding of this name, of `PARTS`."""
    first, _, lossless = name.partition("+")
    return frozenset(one for one in (*first.split(":"), lossless) if one in PARTS)
