"""The model is a function of the accepted updates: not of arrival, speed or who came first."""

from pathlib import Path

import pytest

from tests.system.fleet import Fleet, FleetFactory

CLIENTS = ("ada", "bob", "cyd")


def trained(fleet: Fleet, order: tuple[str, ...], slow: str, gate: Path) -> list[str]:
    """Digests of a job's versions; the client `slow` delivers last in the first round."""
    fleet.serve("--lease-seconds", "20")
    for name in order:
        if name == slow:
            gate.touch()
            fleet.gated_client(name, gate, "train")
        else:
            fleet.client(name)
    job = fleet.submit(cohort=3, quorum=3)
    if slow:
        for name in order:
            if name != slow:
                fleet.wait_row(job, name, "accepted")
        gate.unlink()
    fleet.finish(job)
    assert all(len(fleet.ledger(job, number)) == 3 for number in (1, 2, 3))
    return fleet.digests(job)


@pytest.mark.slow
def test_two_runs_give_the_same_bits(new_fleet: FleetFactory, tmp_path: Path) -> None:
    """Two runs of one job with one seed and the same clients: bit-identical versions, whatever
    the order in which clients attend and updates arrive."""
    first = trained(new_fleet(), CLIENTS, "ada", tmp_path / "gate")
    second = trained(new_fleet(), CLIENTS[::-1], "cyd", tmp_path / "gate")
    assert len(first) == 4
    assert first == second
