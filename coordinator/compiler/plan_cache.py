"""Compiled plans kept by what went into them, so that the same job compiles once.

    <folder>/<SHA-256 of everything that a plan depends on>.plan

The key covers the job's model and training, every file that the author's code opened while it was
loaded or imports by a line of it, the model's structure and initial tensors, the compiler's own
sources, and the versions of Python and of all installed distributions. Opening an entry verifies
it; a damaged one counts as absent and is written anew. Entries are replaced atomically, so several
processes may share a folder.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.jobs.job_spec import JobSpec
from headwater.errors import PlanError, StorageError
from headwater.manifest import Manifest
from headwater.plan import Plan, write_plan

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT_BYTES = 2 * 2**30
"""Of all entries together; those that were used longest ago go first."""

_OF_NO_PLAN = ("dataset", "rounds", "aggregation", "clients")
"""Tables of a job that no plan depends on."""

_OWN_FOLDERS = [Path(__file__).parents[1], Path(sys.modules["headwater"].__path__[0])]
_INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib", "purelib")]


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/headwater/plans`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headwater" / "plans"


class PlanCache:
    """A folder of plans by key."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def read(self, key: str) -> tuple[Manifest, dict[str, bytes]] | None:
        """A whole and undamaged entry, or None."""
        path = self._path(key)
        try:
            plan = Plan.open(path)
            members = {name: plan.read(name) for name in plan.manifest.members}
        except PlanError:
            return None
        with suppress(OSError):
            os.utime(path)
        return plan.manifest, members

    def write(self, key: str, manifest: Manifest, members: Mapping[str, bytes]) -> None:
        """Keep a plan and let go of old ones; a disk that refuses costs a later compile only."""
        with suppress(StorageError):
            write_plan(self._path(key), manifest, members)
            self._shrink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.plan"

    def _shrink(self) -> None:
        entries = []
        for path in self._folder.glob("*.plan"):
            with suppress(OSError):
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def plan_key(spec: JobSpec, model: "nn.Module", files: set[Path], folder: Path) -> str:
    """The SHA-256 of what a plan depends on; `files` are those that the author's code opened."""
    parts = spec.to_dict()
    for name in _OF_NO_PLAN:
        parts.pop(name, None)
    digest = hashlib.sha256()
    for text in (
        json.dumps(parts, sort_keys=True),
        sys.version,
        *sorted(f"{one.name} {one.version}" for one in importlib.metadata.distributions()),
        repr(model),
    ):
        _add(digest, text.encode())
    for path in sorted(_with_imports(files, folder)):
        _add(digest, str(path).encode(), _content(path))
    for place in _OWN_FOLDERS:
        for path in sorted(place.rglob("*.py")):
            _add(digest, _content(path))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _add(digest, f"{name} {tensor.dtype} {tensor.requires_grad}".encode(), _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: "Tensor") -> bytes:
    """The tensor's form and values; lazy ones and those without values are refused later."""
    import torch

    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{list(tensor.shape)} ".encode() + flat.numpy().tobytes()


def _add(digest: Any, *parts: Any) -> None:
    """Each part with its length before it, so that no two lists of parts read alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


_opened: list[set[Path]] = []
_is_hooked = False


@contextmanager
def opened_files() -> Iterator[set[Path]]:
    """The author's files that are opened within: code that is imported, tables that it reads.

    Not those of the standard library, of installed packages and of this project, which versions
    stand for.
    """
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    files: set[Path] = set()
    _opened.append(files)
    try:
        yield files
    finally:
        _opened.remove(files)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Python calls this for every file that it opens, for as long as the process lives."""
    if event != "open" or not _opened or not isinstance(arguments[0], str):
        return
    path = Path(arguments[0]).absolute()
    if _is_authors(path):
        for files in _opened:
            files.add(path)


def _is_authors(path: Path) -> bool:
    if "site-packages" in path.parts or path.parts[:2] in (("/", "proc"), ("/", "dev")):
        return False
    return not any(path.is_relative_to(place) for place in (*_INSTALLED, *_OWN_FOLDERS))


def _with_imports(files: set[Path], folder: Path) -> set[Path]:
    """The files, and those beside the job that a line of them imports later, in a function."""
    found, waiting = set(), [path for path in files if path.is_file()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            waiting += _siblings(path, folder)
    return found


def _siblings(path: Path, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(_content(path))
    except (SyntaxError, ValueError):
        return
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names |= {base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)}
    for name in sorted(names - {""}):
        for root in {folder.absolute(), path.parent}:
            place = root.joinpath(*name.split("."))
            yield from (one for one in (place.with_suffix(".py"), place / "__init__.py")
                        if one.is_file())  # fmt: skip
