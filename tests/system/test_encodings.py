"""Jobs whose updates are encoded, over real processes: bytes, the ledger, replay, and restarts."""

import json
import re

import pytest

from tests.system.fleet import Fleet
from tests.system.processes import run


@pytest.mark.parametrize(
    ("encoding", "share", "error"),
    [
        ("bf16", (0.4, 0.65), (0.0, 0.01)),
        ("int8+zstd", (0.2, 0.5), (0.0, 0.03)),
        ("int4", (0.1, 0.4), (0.01, 0.5)),
        ("topk:0.1", (0.05, 0.4), (0.1, 1.0)),
    ],
)
def test_a_job_trains_with_encoded_updates_and_tells_what_they_cost(
    shared_fleet: Fleet, encoding: str, share: tuple, error: tuple
) -> None:
    """Three rounds of two real clients; each round is replayed to the same bits."""
    for name in ("ann", "bob"):
        shared_fleet.start_client(name)
    job = shared_fleet.submit(count=3, cohort=2, quorum=2, updates={"encoding": encoding})
    rounds = shared_fleet.finish(job)
    assert [one.accepted for one in rounds] == [2, 2, 2]
    for number in (1, 2, 3):
        for row in shared_fleet.ledger(job, number).values():
            assert row.encoding == encoding
            assert row.bytes_up == row.update_size_bytes
            assert share[0] < row.update_size_bytes / row.unencoded_size_bytes < share[1]
            assert error[0] < row.encoding_error < error[1]
            feeds_back = encoding[:4] in ("int4", "topk")
            assert (row.residual_norm > 0) is (feeds_back and number > 1)
            assert row.residual_age_rounds == int(feeds_back and number > 1)
    shown = run("rounds", "show", job, "3", "--coordinator", shared_fleet.address).out
    assert re.search(rf"ann +{re.escape(encoding)} .*%", shown), shown
    replayed = run("replay", job, "3", "--data-directory", str(shared_fleet.data), "--json")
    assert json.loads(replayed.out)["equal"], replayed.err
    for name in ("ann", "bob"):
        shared_fleet.clients[name].stop()
    shared_fleet.attending()


def test_a_client_that_cannot_write_the_encoding_is_left_out_with_the_reason(
    shared_fleet: Fleet,
) -> None:
    old = shared_fleet.device("old")  # says that it knows fp32 alone
    old.attend()
    shared_fleet.start_client("new")
    job = shared_fleet.submit(count=1, cohort=2, quorum=1, updates={"encoding": "int8+zstd"})
    (one,) = shared_fleet.finish(job)
    reason = "it does not know the update encoding int8+zstd: no int8, zstd"
    assert dict(one.not_selected) == {reason: 1}
    shared_fleet.clients["new"].stop()
    old.close()
    shared_fleet.attending()


def test_auto_gives_each_client_what_its_link_carries(shared_fleet: Fleet) -> None:
    """A link that was not measured gets int8; on loopback the finest follows."""
    shared_fleet.start_client("eve")
    job = shared_fleet.submit(count=2, cohort=1, quorum=1, updates={"encoding": "auto"})
    shared_fleet.finish(job)
    encodings = [shared_fleet.ledger(job, number)["eve"].encoding for number in (1, 2)]
    assert encodings == ["int8+zstd", "fp32"]
    shared_fleet.clients["eve"].stop()
    shared_fleet.attending()
