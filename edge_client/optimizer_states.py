"""Optimizer state that a job keeps on the device from round to round."""

import hashlib
import logging
import os
from pathlib import Path

from headwater import durable_files
from headwater.batch import Array
from headwater.errors import PlanError
from headwater.safetensors import read_tensors, write_tensors

_log = logging.getLogger("headwater.client")


class OptimizerStates:
    """States by (job, plan), the latest in memory and the latest `kept` on disk."""

    def __init__(self, folder: Path, kept: int = 8) -> None:
        durable_files.make_folder(folder, 0o700)
        durable_files.clear_unfinished(folder)
        self._folder = folder
        self._kept = kept
        self._latest: tuple[Path, dict[str, Array]] | None = None

    def load(self, job: str, plan_digest: str) -> dict[str, Array] | None:
        """The state that the job's last round left here, or None."""
        path = self._path(job, plan_digest)
        if self._latest and self._latest[0] == path:
            return self._latest[1]
        if not path.exists():
            return None
        try:
            return {name: array.copy() for name, array in read_tensors(path).items()}
        except PlanError as error:
            _log.warning("the optimizer starts anew, because its kept state is damaged: %s", error)
            return None

    def save(self, job: str, plan_digest: str, state: dict[str, Array]) -> None:
        """Keep a state.

        Raises:
            StorageError: the disk is full or failed; the state before stays.
        """
        path = self._path(job, plan_digest)
        with durable_files.new_file(path) as file:
            write_tensors(file, state)
        with durable_files.disk_errors(path):
            kept = sorted(self._folder.glob("*.safetensors"), key=os.path.getmtime)
        for old in kept[: -self._kept]:
            durable_files.remove(old)
        self._latest = (path, state)

    def _path(self, job: str, plan_digest: str) -> Path:
        key = hashlib.sha256(f"{job}\n{plan_digest}".encode()).hexdigest()[:32]
        return self._folder / f"{key}.safetensors"
