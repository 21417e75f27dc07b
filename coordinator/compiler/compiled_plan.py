"""What the compiler gives. Apart from it, so that a plan from the cache waits for no compiler."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headwater.manifest import Manifest
from headwater.plan import write_plan


@dataclass(frozen=True)
class CompiledPlan:
    """A plan in memory, past the parity gate. The figures of the gate are `manifest.parity`."""

    manifest: Manifest
    members: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """The plan's identity, the SHA-256 of its manifest."""
        return hashlib.sha256(self.manifest.to_bytes()).hexdigest()

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        return self.members[member]

    def write(self, path: str | Path) -> str:
        """Write a `.plan` file, or a directory where the path has no such suffix; its digest."""
        return write_plan(path, self.manifest, self.members)
