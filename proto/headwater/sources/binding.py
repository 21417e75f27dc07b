"""What a user types to bind a data set: `NAME=PATH?key=value&key=value`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote

from headwater.errors import UsageError

DEFAULT_MEMORY_MIB = 256

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Two letters at least: a single one is a drive on Windows.
_SCHEME = re.compile(r"([a-z][a-z0-9_-]+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Binding:
    """A data set as bound: `scheme` is None for files and folders, `path` has no options."""

    text: str
    scheme: str | None
    path: str
    options: Mapping[str, str]


def parse_binding(text: str) -> tuple[str, str]:
    """Split `NAME=PATH[?options]` into the data set's name and what `open_source` takes.

    Raises:
        UsageError: there is no `=`, the name is not made of letters, digits, `.`, `_` and `-`, or
            nothing follows it.
    """
    name, equals, binding = text.partition("=")
    if not equals or not _NAME.fullmatch(name) or not binding:
        raise UsageError(
            f"data binding {text!r} is not NAME=PATH: write for example "
            "cifar10=/data/part-0.parquet (a name has letters, digits, '.', '_' and '-')"
        )
    return name, binding


def split_binding(text: str) -> Binding:
    """Take a binding apart. A path that exists under exactly this text is taken whole.

    Values are percent-decoded (`%26` for `&`); `+` stays a plus.

    Raises:
        UsageError: an option has no value, or is given twice.
    """
    if Path(text).exists():
        return Binding(text, None, text, {})
    location, _, query = text.partition("?")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"{text}: option {pair!r} is not key=value")
        if key in options:
            raise UsageError(f"{text}: option {key!r} is given twice")
        options[key] = unquote(value)
    match = None if Path(location).exists() else _SCHEME.fullmatch(location)
    if match:
        return Binding(text, match[1], match[2], options)
    return Binding(text, None, location, options)


def absent_path(text: str) -> str | None:
    """The path of a bound file or folder that is not there, or not yet; None for what is no path.

    Raises:
        UsageError: an option has no value, or is given twice.
    """
    binding = split_binding(text)
    return None if binding.scheme or Path(binding.path).exists() else binding.path


def check_options(binding: Binding, allowed: Collection[str]) -> None:
    """Refuse options that a kind of source does not have.

    Raises:
        UsageError: names the first unknown option and lists those there are.
    """
    for key in binding.options:
        if key not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise UsageError(f"{binding.text}: unknown option {key!r} (options here: {known})")


def names_option(binding: Binding, key: str) -> tuple[str, ...] | None:
    """A comma-separated option as a tuple of names, or None where it is absent."""
    value = binding.options.get(key)
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(","))
    if not all(names):
        raise UsageError(f"{binding.text}: option {key}={value} has an empty name")
    return names


def integer_option(binding: Binding, key: str, default: int, minimum: int) -> int:
    """A whole number that is at least `minimum`."""
    value = binding.options.get(key)
    if value is None:
        return default
    if not re.fullmatch(r"-?\d+", value) or int(value) < minimum:
        raise UsageError(
            f"{binding.text}: option {key}={value} must be a whole number, at least {minimum}"
        )
    return int(value)


def positive_option(binding: Binding, key: str) -> Fraction | None:
    """A positive number, written as `0.5`, `1e-3` or `1/16`, or None where it is absent."""
    value = binding.options.get(key)
    if value is None:
        return None
    try:
        number = Fraction(value)
    except (ValueError, ZeroDivisionError):
        number = Fraction(0)
    if number <= 0:
        raise UsageError(
            f"{binding.text}: option {key}={value} must be a positive number such as 0.5 or 1/16"
        )
    return number


def flag_option(binding: Binding, key: str) -> bool:
    """`true` or `false`; false where it is absent."""
    value = binding.options.get(key, "false")
    if value not in ("true", "false"):
        raise UsageError(f"{binding.text}: option {key}={value} must be true or false")
    return value == "true"


def memory_bytes(binding: Binding) -> int:
    """The budget for examples held in memory: option `memory_mib`, 256 MiB where it is absent."""
    return int((positive_option(binding, "memory_mib") or DEFAULT_MEMORY_MIB) * 2**20)
