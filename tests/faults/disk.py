"""What a disk holds after power loss: only what was synced.

A file's bytes are durable once it was synced, and a name once its folder was. `Disk` follows the
steps of `headwater.durable_files` and knows, after each, the two worst things that a cut there can
leave: every name that was not synced is missing, or it is there with bytes that are torn.
"""

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.program import label_of

Tree = dict[str, bytes]
"""Bytes by path relative to the root; folders are those that files need."""


@dataclass(frozen=True)
class Cut:
    """What a power cut after a step leaves: `missing` and `torn` are the two ways, `database` the
    last committed state, `step` the label of the step."""

    step: str
    missing: Tree
    torn: Tree
    database: bytes


@dataclass
class Disk:
    """Observe `headwater.steps` with `observe`. `ignored` are labels whose sync does nothing."""

    root: Path
    database: Path | None = None
    ignored: frozenset[str] = frozenset()
    cuts: list[Cut] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    _bytes: dict[int, bytes] = field(default_factory=dict)
    _names: dict[str, dict[str, int]] = field(default_factory=dict)
    _committed: bytes = b""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def observe(self, name: str, subject: object) -> None:
        """A step is about to be taken: a cut comes before it, and then it counts as taken."""
        with self._lock:
            label = label_of(name, subject, sys._getframe(1))
            if isinstance(subject, Path) and not subject.is_relative_to(self.root):
                return
            self.cut(label)
            if name in ("sync", "sync folder"):
                self.labels.add(label)
            if label in self.ignored:
                return
            if name == "sync" and isinstance(subject, Path):
                self._bytes[subject.stat().st_ino] = subject.read_bytes()
            elif name == "sync folder" and isinstance(subject, Path):
                folder = str(subject.relative_to(self.root))
                self._names[folder] = {e.name: e.inode() for e in os.scandir(subject)}
            elif name == "committed" and self.database is not None:
                self._committed = committed(self.database)

    def cut(self, step: str) -> None:
        """Note what a cut would leave now."""
        found = Cut(step, self._missing(), self._torn(), self._committed)
        if not self.cuts or found != Cut(step, *_state(self.cuts[-1])):
            self.cuts.append(found)

    def _missing(self) -> Tree:
        """What is durable by name and by bytes."""
        return dict(self._durable("."))

    def _durable(self, folder: str) -> Iterator[tuple[str, bytes]]:
        for name, inode in self._names.get(folder, {}).items():
            path = name if folder == "." else f"{folder}/{name}"
            if path in self._names or (self.root / path).is_dir():
                yield from self._durable(path)
            else:
                yield path, self._bytes.get(inode, b"")

    def _torn(self) -> Tree:
        """Every name that there is, with half of the bytes where they were not synced."""
        tree = {}
        for path in self.root.rglob("*"):
            try:
                if not path.is_file() or path.name.startswith("headwater.db"):
                    continue
                inode, content = path.stat().st_ino, path.read_bytes()
            except FileNotFoundError:
                continue
            durable = self._bytes.get(inode)
            tree[str(path.relative_to(self.root))] = (
                content[: len(content) // 2] if durable is None else durable
            )
        return tree

    def states(self) -> Iterator[tuple[str, Tree, bytes]]:
        """Each cut in both ways."""
        for one in self.cuts:
            yield f"{one.step} (missing)", one.missing, one.database
            yield f"{one.step} (torn)", one.torn, one.database


def _state(cut: Cut) -> tuple[Tree, Tree, bytes]:
    return cut.missing, cut.torn, cut.database


def committed(path: Path) -> bytes:
    """The committed state of a SQLite database that others write."""
    with sqlite3.connect(path) as source, sqlite3.connect(":memory:") as copy:
        source.backup(copy)
        return copy.serialize()


def rebuilt(folder: Path, tree: Tree) -> Path:
    """A folder with these files."""
    folder.mkdir(parents=True)
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def first_fault(disk: Disk, folder: Path, check: Callable[[Path, bytes], str]) -> str:
    """The first cut after which `check` of the rebuilt folder finds something, and what."""
    for number, (step, tree, database) in enumerate(disk.states()):
        fault = check(rebuilt(folder / str(number), tree), database)
        if fault:
            return f"before {step}: {fault}"
    return ""
