"""A round folded again beside the coordinator that committed it."""

import json

from tests.system.fleet import Fleet
from tests.system.training import job_text


def test_a_robust_job_is_replayed_beside_its_coordinator(fleet: Fleet) -> None:
    """A job with the median over three real clients: `headwater replay` gives the same digests
    while the coordinator runs, and what a round without a client would have been."""
    for name in ("ada", "bob", "cyd"):
        fleet.client(name)
    path = fleet.folder / "median.toml"
    path.write_text(job_text(cohort=3, quorum=3, count=2) + '[aggregation]\nrule = "median"\n')
    job = fleet.control.submit(path, fleet.plan).reference
    fleet.finish(job)
    assert {round(row.fold_weight, 6) for row in fleet.ledger(job, 2).values()} == {0.333333}
    digests = fleet.digests(job)
    place = ("--data-directory", str(fleet.data), "--database", fleet.database)
    for number in (1, 2):
        assert fleet.cli("replay", job, str(number), *place).out.count(digests[number]) == 2
    pulled, again = fleet.folder / "pulled", fleet.folder / "again"
    fleet.cli("models", "pull", f"{job}@2", "-o", str(pulled))
    data = ("--data", f"clusters={fleet.held_out}")
    done = fleet.cli("replay", job, "2", *place, *data, "-o", str(again), "--json")
    found = json.loads(done.out)
    assert found["replayed"]["metrics"] == found["committed"]["metrics"] != {}
    assert again.read_bytes() == pulled.read_bytes()
    what_if = json.loads(fleet.cli("replay", job, "2", "--without", "bob", *place, "--json").out)
    assert what_if["shares"] == {"ada": 0.5, "cyd": 0.5}
    assert what_if["replayed"]["digest"] not in digests
    assert fleet.digests(job) == digests
    failed = fleet.cli("replay", job, "3", *place, code=2)
    assert "evaluated a version and changed no weights" in failed.err
