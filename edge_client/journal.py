"""The finished update, on disk from before it is offered until the coordinator's final word.

A client has one assignment at a time, so it holds one update at most: `held.json` says what it is,
`<assignment>.update` has its frames. The record is written after the frames, and both are synced
before the update is offered.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from headwater import durable_files
from headwater.errors import StorageError
from headwater.v1.fleet_pb2 import OfferRequest

_RECORD = "held.json"
_SUFFIX = ".update"
_KIND = {".json": "held", _SUFFIX: "update"}


@dataclass(frozen=True)
class HeldUpdate:
    """What is offered. `path` is None for an evaluation, which has no bytes."""

    coordinator: str
    job: str
    round_number: int
    offer: OfferRequest
    path: Path | None

    @property
    def assignment_id(self) -> int:
        """The assignment that it answers."""
        return self.offer.assignment_id


class Journal:
    """The journal in one folder, for the client of one identity."""

    def __init__(self, folder: Path) -> None:
        durable_files.make_folder(folder, 0o700)
        self.folder = folder

    def store(
        self,
        frames: Iterable[bytes] | None,
        *,
        coordinator: str,
        job: str,
        round_number: int,
        offer: OfferRequest,
    ) -> HeldUpdate:
        """Write an update durably and return it; `frames` is None for an evaluation.

        The offer's digest and size are filled in from the frames.

        Raises:
            StorageError: the disk is full or failed; nothing is held then.
            UpdateError: what `frames` raises.
        """
        self._clear()
        path = None
        if frames is not None:
            path = self.folder / f"{offer.assignment_id}{_SUFFIX}"
            measured = _Measured(frames)
            durable_files.write(path, measured)
            offer.digest, offer.size_bytes = measured.digest, measured.size_bytes
        held = HeldUpdate(coordinator, job, round_number, offer, path)
        durable_files.write(self.folder / _RECORD, [json.dumps(_encode(held)).encode()])
        return held

    def load(self) -> HeldUpdate | None:
        """The update that an earlier process finished, or None.

        Raises:
            StorageError: the record or the update is damaged, and its files are set aside, under
                names that end in `.damaged`.
        """
        record = self.folder / _RECORD
        with durable_files.disk_errors(record):
            if not record.exists():
                self._clear()
                return None
            text = record.read_bytes()
        try:
            held = _decode(text, self.folder)
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            self._set_aside()
            raise StorageError(
                f"{record} was damaged: its update is lost, its files are set aside ({error})"
            ) from error
        if held.path is not None and not _is_whole(held.path, held.offer):
            self._set_aside()
            raise StorageError(
                f"{held.path} was damaged: its update is lost, its files are set aside"
            )
        return held

    def drop(self, assignment_id: int) -> None:
        """Forget an update after the final word on it; a lost deletion is harmless."""
        durable_files.remove(self.folder / _RECORD)
        durable_files.remove(self.folder / f"{assignment_id}{_SUFFIX}")

    def _set_aside(self) -> None:
        """Keep what is damaged for those who look for the cause, and the last of it only."""
        for path in (self.folder / _RECORD, *self.folder.glob(f"*{_SUFFIX}")):
            if path.exists():
                durable_files.move(path, self.folder / f"{_KIND[path.suffix]}.damaged")
        self._clear()

    def _clear(self) -> None:
        with durable_files.disk_errors(self.folder):
            left = [*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(".*.tmp")]
        for path in (self.folder / _RECORD, *left):
            durable_files.remove(path)


class _Measured:
    """Passes chunks on, and knows their digest and size after the last."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.size_bytes += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _encode(held: HeldUpdate) -> dict[str, Any]:
    return {
        "coordinator": held.coordinator,
        "job": held.job,
        "round": held.round_number,
        "has_bytes": held.path is not None,
        "offer": json_format.MessageToDict(held.offer, preserving_proto_field_name=True),
    }


def _decode(text: bytes, folder: Path) -> HeldUpdate:
    document = json.loads(text)
    offer = json_format.ParseDict(document["offer"], OfferRequest())
    return HeldUpdate(
        str(document["coordinator"]),
        str(document["job"]),
        int(document["round"]),
        offer,
        folder / f"{offer.assignment_id}{_SUFFIX}" if document["has_bytes"] else None,
    )


def _is_whole(path: Path, offer: OfferRequest) -> bool:
    if not path.exists():
        return False
    with durable_files.disk_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == offer.digest
