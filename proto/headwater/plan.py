"""A plan: one training step as data, content-addressed, in a directory or a single `.plan` file.

A plan is a manifest and its members. The file is a zip without compression, members sorted by name
with fixed times, so that the same inputs give the same bytes. Nothing in it is executed: graphs are
checked (`headwater.plan_checks`) before a runtime sees them.
"""

import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from headwater import durable_files
from headwater.batch import Array
from headwater.errors import PlanError
from headwater.layout import Layout, Weights
from headwater.manifest import MAXIMUM_MANIFEST_BYTES, Manifest
from headwater.safetensors import read_tensors

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FROZEN = "frozen.safetensors"

MAXIMUM_MEMBER_BYTES = 8 * 2**30
"""Weights of two billion float32 parameters; graphs have a lower limit of their own."""

_MEMBER_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(\.[a-z0-9_]+)+")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


class ReadablePlan(Protocol):
    """A plan whose members can be read, opened or just compiled."""

    @property
    def manifest(self) -> Manifest:
        """What the plan says of itself."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest's bytes."""

    def read(self, member: str) -> bytes:
        """The bytes of one member."""


class Plan:
    """An opened plan. Every byte that `read` returns has the digest that the manifest names."""

    def __init__(self, manifest: bytes, read_member: Callable[[str], bytes]) -> None:
        self.manifest = Manifest.from_bytes(manifest)
        self.manifest_bytes = manifest
        self.digest = hashlib.sha256(manifest).hexdigest()
        self._read_member = read_member
        for name, member in self.manifest.members.items():
            _check_member(name, member.size_bytes)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Plan":
        """Open a plan directory or a `.plan` file and verify every member.

        Raises:
            PlanError: missing, damaged, of a newer schema, or with members that do not belong.
        """
        path = Path(path)
        read = _directory_reader(path) if path.is_dir() else _zip_reader(path)
        plan = cls(read(MANIFEST), read)
        for name in plan.manifest.members:
            plan.read(name)
        return plan

    @classmethod
    def from_blobs(cls, manifest: bytes, read_blob: Callable[[str], bytes]) -> "Plan":
        """A plan whose members are fetched by digest when they are needed."""
        members = Manifest.from_bytes(manifest).members
        return cls(manifest, lambda name: read_blob(members[name].digest))

    @property
    def layout(self) -> Layout:
        """The order and offsets of the model's tensors."""
        return self.manifest.layout

    def read(self, member: str) -> bytes:
        """The bytes of one member.

        Raises:
            PlanError: no such member, or its bytes are not what the manifest names.
        """
        expected = self.manifest.members.get(member)
        if expected is None:
            raise PlanError(
                f"the plan {self.manifest.name!r} has no member {member!r}; it has: "
                + ", ".join(sorted(self.manifest.members))
            )
        data = self._read_member(member)
        if len(data) != expected.size_bytes:
            raise PlanError(
                f"plan member {member!r} has {len(data)} bytes; the manifest says "
                f"{expected.size_bytes}: fetch the plan again"
            )
        if hashlib.sha256(data).hexdigest() != expected.digest:
            raise PlanError(
                f"plan member {member!r} does not have the digest that the manifest names: it was "
                "damaged or swapped; fetch the plan again"
            )
        return data

    def initial_weights(self) -> Weights:
        """The weights that a job starts from."""
        return self.layout.flatten(self.tensors(WEIGHTS))

    def frozen_tensors(self) -> dict[str, Array]:
        """Constant tensors by name, empty where the model has none."""
        return self.tensors(FROZEN) if FROZEN in self.manifest.members else {}

    def tensors(self, member: str) -> dict[str, Array]:
        """The named arrays of a safetensors member, in memory."""
        with tempfile.TemporaryDirectory(prefix="headwater-plan-") as folder:
            path = Path(folder) / member
            path.write_bytes(self.read(member))
            return {name: array.copy() for name, array in read_tensors(path).items()}


def write_plan(
    path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, bytes]
) -> str:
    """Write a plan and return its digest.

    A path that ends in `.plan` or `.zip` becomes one file, replaced atomically; any other becomes a
    directory, whose manifest is written last.

    Raises:
        PlanError: the members are not those that the manifest names.
    """
    data = manifest.to_bytes()
    plan = Plan(data, members.__getitem__)
    if set(members) != set(manifest.members):
        odd = sorted(set(members) ^ set(manifest.members))
        raise PlanError(f"the manifest and the members of the plan differ in: {', '.join(odd)}")
    for name in members:
        plan.read(name)
    path = Path(path)
    entries = {**members, MANIFEST: data}
    if path.suffix in (".plan", ".zip"):
        durable_files.make_folder(path.parent)
        with durable_files.new_file(path) as file:
            _write_zip(file, entries)
    else:
        durable_files.make_folder(path)
        for name in (*sorted(members), MANIFEST):
            durable_files.write(path / name, [entries[name]])
    return plan.digest


def _write_zip(file: BinaryIO, entries: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, entries[name])


def _check_member(name: str, size_bytes: int) -> None:
    if name == MANIFEST or not _MEMBER_NAME.fullmatch(name):
        raise PlanError(
            f"the plan names a member {name[:80]!r}: names are lower case with one suffix or more, "
            "without folders"
        )
    if size_bytes > MAXIMUM_MEMBER_BYTES:
        raise PlanError(
            f"plan member {name!r} has {size_bytes} bytes; the limit is {MAXIMUM_MEMBER_BYTES}"
        )


def _directory_reader(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        limit = MAXIMUM_MANIFEST_BYTES if name == MANIFEST else MAXIMUM_MEMBER_BYTES
        return _read_file(path / name, limit)

    return read


def _read_file(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise PlanError(f"{path}: has more than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error


def _zip_reader(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                sizes = _checked_entries(archive, path)
                if name not in sizes:
                    raise PlanError(f"{path}: the plan lacks {name!r}")
                return archive.read(name)
        except OSError as error:
            raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:
            raise PlanError(
                f"{path}: is damaged or not a plan ({error}): compile or copy it again"
            ) from error

    return read


def _checked_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, int]:
    """Sizes by name, after refusing everything that a plan never contains."""
    sizes: dict[str, int] = {}
    for entry in archive.infolist():
        name = entry.orig_filename
        if name in sizes:
            raise PlanError(f"{path}: names the member {name[:80]!r} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise PlanError(f"{path}: member {name[:80]!r} is compressed; plans are stored as is")
        if name == MANIFEST:
            if entry.file_size > MAXIMUM_MANIFEST_BYTES:
                raise PlanError(f"{path}: the manifest has {entry.file_size} bytes, too many")
        else:
            _check_member(name, entry.file_size)
        sizes[name] = entry.file_size
    return sizes
