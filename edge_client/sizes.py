"""Sizes as people write them."""

import re

from headwater.errors import UsageError

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """The bytes in `500MB`, `2GiB` or a plain number.

    Raises:
        UsageError: not a number with one of these units.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise UsageError(
            f"{text!r} is not a size: write a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, "
            "for example 2GiB"
        )
    return int(float(match[1]) * unit)


def show_bytes(count: int) -> str:
    """A size with a binary unit, three digits or so."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
