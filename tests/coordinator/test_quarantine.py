"""Refused updates are kept, and only so many of them."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from coordinator.services.quarantine import KEPT, quarantine
from headwater import steps

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def keep(folder: Path, number: int, content: bytes = b"poison") -> str:
    part = folder.parent / f"{number}.part"
    part.write_bytes(content)
    return quarantine(
        folder, part, assignment_id=number, client="ann", reason="its norm is 9", now=NOW
    )


def test_an_update_lies_beside_what_was_wrong_with_it(tmp_path: Path) -> None:
    kept = Path(keep(tmp_path / "quarantine", 7))
    assert (kept.name, kept.read_bytes()) == ("7.update", b"poison")
    assert json.loads(kept.with_suffix(".json").read_text()) == {
        "assignment_id": 7, "client": "ann", "reason": "its norm is 9",
        "refused_at": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip


def test_the_oldest_go(tmp_path: Path) -> None:
    folder = tmp_path / "quarantine"
    for number in range(KEPT + 3):
        os.utime(keep(folder, number), (number, number))
    keep(folder, 99)
    names = {path.stem for path in folder.iterdir()}
    assert names == {str(n) for n in range(4, KEPT + 3)} | {"99"}


def test_a_full_disk_costs_the_evidence_alone(tmp_path: Path) -> None:
    def full(step: str, subject: object) -> None:
        if step == "move":
            raise OSError(28, "No space left on device")

    with steps.observed(full):
        assert keep(tmp_path / "quarantine", 1) == ""
