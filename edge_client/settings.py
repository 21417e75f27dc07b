"""What a device's owner sets, by options or in a TOML file with the same keys."""

import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edge_client.profile import available_cores
from edge_client.sizes import parse_bytes
from edge_client.state import default_state_path
from edge_client.trainers import Precision
from headwater.errors import UsageError
from headwater.sources import parse_binding

TRAINERS = ("auto", "onnxruntime", "torch")
DEVICES = ("auto", "cpu", "cuda")
LOG_FORMATS = ("text", "json")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Settings:
    """The settings of one client.

    `data` maps data set names to bindings. `threads` is what training may use; all cores by
    default. `cache_bytes` bounds plans and weights on disk: two GiB hold a few models of 100 MB
    with room for the next version. `compile` and `precision` are torch's, which trains eagerly and
    in float32, with TF32 for products on a GPU, where nothing else is asked for.
    `checkpoint_seconds` of training are lost at most when the process dies.
    """

    coordinator: str
    data: Mapping[str, str] = field(default_factory=dict)
    state: Path = field(default_factory=default_state_path)
    name: str = field(default_factory=socket.gethostname)
    tag: Mapping[str, str] = field(default_factory=dict)
    trainer: str = "auto"
    device: str = "auto"
    threads: int = field(default_factory=available_cores)
    cache_bytes: int = 2 * 2**30
    log_format: str = "text"
    compile: bool = False
    precision: Precision = "tf32"
    checkpoint_seconds: float = 300.0


def parse_pairs(kind: str, texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` options as a mapping.

    Raises:
        UsageError: no `=`, no key, or a key twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--{kind} {text!r} is not KEY=VALUE")
        _add(pairs, kind, key, value)
    return pairs


def parse_data(texts: Iterable[str]) -> dict[str, str]:
    """`NAME=BINDING` options as a mapping.

    Raises:
        UsageError: not such a text, or a name twice.
    """
    bindings: dict[str, str] = {}
    for text in texts:
        _add(bindings, "data", *parse_binding(text))
    return bindings


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, checked, as arguments of `Settings`.

    Raises:
        UsageError: the file is missing or no TOML, or has an unknown key or a wrong value; the
            message has the file, the key and what is allowed.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error
    settings = {}
    for key, value in document.items():
        if key not in _KEYS:
            raise UsageError(f"{path}: unknown key {key!r}; allowed: {', '.join(_KEYS)}")
        try:
            settings[key.replace("-", "_")] = _KEYS[key](value)
        except (TypeError, ValueError, UsageError) as error:
            raise UsageError(f"{path}: {key} = {value!r} is wrong: {error}") from error
    return settings


def check_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from options and file merged.

    Raises:
        UsageError: no coordinator, an address without a port, no thread, or no interval.
    """
    if not values.get("coordinator"):
        raise UsageError("no coordinator is given: use --coordinator HOST:PORT")
    settings = Settings(**values)
    host, colon, port = settings.coordinator.rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"the coordinator {settings.coordinator!r} is not HOST:PORT")
    if settings.threads < 1:
        raise UsageError(f"--threads {settings.threads} is wrong: at least 1")
    if not settings.checkpoint_seconds > 0:
        raise UsageError(f"--checkpoint-seconds {settings.checkpoint_seconds:g}: more than 0")
    return settings


def _add(pairs: dict[str, str], kind: str, key: str, value: str) -> None:
    if key in pairs:
        raise UsageError(f"--{kind} names {key!r} twice")
    pairs[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a text is expected")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false is expected")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise TypeError("a positive integer is expected")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise TypeError("a number of seconds above 0 is expected")
    return float(value)


def _size(value: Any) -> int:
    return _count(value) if type(value) is int else parse_bytes(_text(value))


def _path(value: Any) -> Path:
    return Path(_text(value)).expanduser()


def _table(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("a table of texts is expected")
    return {key: _text(item) for key, item in value.items()}


def _bindings(value: Any) -> dict[str, str]:
    return parse_data(f"{name}={binding}" for name, binding in _table(value).items())


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"allowed: {', '.join(choices)}")
        return str(value)

    return parse


_KEYS: dict[str, Callable[[Any], Any]] = {
    "coordinator": _text,
    "data": _bindings,
    "state": _path,
    "name": _text,
    "tag": _table,
    "trainer": _one_of(TRAINERS),
    "device": _one_of(DEVICES),
    "threads": _count,
    "cache-bytes": _size,
    "log-format": _one_of(LOG_FORMATS),
    "compile": _flag,
    "precision": _one_of(PRECISIONS),
    "checkpoint-seconds": _seconds,
}
