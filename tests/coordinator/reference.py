"""What must hold of a coordinator's database, whatever happened to the coordinator.

The reference knows the policies of the jobs and what clients were told, and nothing of the engine:
it makes each version again from the rows and from its own copies of the updates.
"""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.aggregation.order import Contribution
from coordinator.aggregation.rule import Rule, fold
from coordinator.aggregation.server_optimizer import ServerState, ServerStep, first_state
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.staleness import discounted
from coordinator.jobs.job_spec import JobSpec
from headwater.encodings.names import EXACT
from headwater.layout import Layout, Weights
from headwater.safetensors import weights_chunks
from headwater.updates import StoredUpdate
from storage.records import AssignmentState as A
from storage.records import JobState as J
from storage.records import RoundState as R
from storage.transitions import TRANSITIONS, UNFINISHED_ASSIGNMENTS
from tests.system.device import Update

FIRST = {"job": J.QUEUED, "round": R.OPEN, "assignment": A.OFFERED}
STATES = {"job": J, "round": R, "assignment": A}
BY_THE_FOLD = ("its update is unsound: ", "its stored update cannot be read: ")
PAUSES = ("the operator's", "5 rounds in a row were abandoned", "resumed")

Row = Mapping[str, Any]


class Reference:
    """Looks at a SQLite file on a connection of its own. Every check raises AssertionError."""

    def __init__(self, database: Path, copies: Path, layout: Layout) -> None:
        self._connection = sqlite3.connect(database)
        self._connection.row_factory = sqlite3.Row
        self._copies, self._layout = copies, layout
        self._states: dict[tuple[str, int], str] = {}
        self._checked: set[int] = set()
        self._specs: dict[int, JobSpec] = {}
        self._weights: dict[int, Weights] = {}
        self._optimizer_states: dict[int, ServerState] = {}
        self.receipts: dict[int, str] = {}
        self.fates: dict[int, bool] = {}
        self.cancelled: set[int] = set()
        self.damaged: set[str] = set()

    def close(self) -> None:
        self._connection.close()

    # What the test tells it.

    def job(self, job_id: int, spec: JobSpec, first: Weights) -> None:
        """A job was submitted with these weights as version 0."""
        self._specs[job_id] = spec
        (version,) = self._rows("model_versions", job_id=job_id)
        self._weights[version["id"]] = first
        optimizer = spec.aggregation.optimizer
        if optimizer is not None:
            self._optimizer_states[version["id"]] = first_state(optimizer, self._layout)

    def keep(self, update: Update) -> Update:
        """Keep a copy of an update that a client may send."""
        (self._copies / update.digest).write_bytes(update.encoded)
        return update

    def receipt(self, assignment_id: int, digest: str) -> None:
        """A client was told that its update is accepted."""
        assert self.receipts.setdefault(assignment_id, digest) == digest, "two updates are accepted"

    def fate(self, assignment_id: int, folded: bool) -> None:
        """A client was told whether its update was folded."""
        assert self.fates.setdefault(assignment_id, folded) is folded, "two fates of one update"

    # After each write.

    def states(self) -> None:
        """States only move along the table, a step a write; rounds open for running jobs only."""
        now = {(kind, row["id"]): row for kind in STATES for row in self._rows(f"{kind}s")}
        assert not self._states.keys() - now.keys(), "a row has gone"
        for (kind, key), row in now.items():
            before = self._states.get((kind, key))
            state = STATES[kind](row["state"])
            if before is None:
                assert state is FIRST[kind], f"{kind} {key} began as {state}"
                if kind == "round":
                    assert now["job", row["job_id"]]["state"] == J.RUNNING
            elif before != state:
                legal = TRANSITIONS[kind][STATES[kind](before)]
                assert state in legal, f"{kind} {key} went from {before} to {state}"
        self._states = {key: row["state"] for key, row in now.items()}

    # After each step of a history.

    def check(self) -> None:
        """All that holds at any time."""
        rounds, assignments = self._rows("rounds"), self._rows("assignments")
        by_round = {one["id"]: [row for row in assignments if row["round_id"] == one["id"]]
                    for one in rounds}  # fmt: skip
        self._check_receipts({row["id"]: row for row in assignments})
        self._check_one_part_each(rounds, by_round)
        for job in self._rows("jobs"):
            self._check_job(job, [one for one in rounds if one["job_id"] == job["id"]])
        self._check_late(assignments, {one["id"]: one for one in rounds})
        for one in rounds:
            if one["ended_at"] is not None and one["id"] not in self._checked:
                late = [row for row in assignments if row["folded_round_id"] == one["id"]]
                self._check_ended(one, by_round[one["id"]], late)
                self._checked.add(one["id"])

    def _check_receipts(self, rows: Mapping[int, Row]) -> None:
        for key, digest in self.receipts.items():
            row = rows[key]
            is_held = row["state"] in (A.ACCEPTED, A.LATE)
            kept = is_held and (row["update_digest"] or "") == digest
            refused = row["state"] == A.REJECTED and row["reason"].startswith(BY_THE_FOLD)
            assert kept or refused, f"the accepted update of assignment {key} is {row['state']}"
        for key, folded in self.fates.items():
            assert folded is (rows[key]["weight"] is not None), f"assignment {key} was told wrong"

    def _check_one_part_each(
        self, rounds: Iterable[Row], by_round: Mapping[int, Sequence[Row]]
    ) -> None:
        pending = Counter(
            row["client_id"]
            for one in rounds if one["state"] == R.OPEN
            for row in by_round[one["id"]] if row["state"] in UNFINISHED_ASSIGNMENTS
        )  # fmt: skip
        assert not pending or max(pending.values()) == 1, f"a client works twice: {pending}"

    def _check_job(self, job: Row, rounds: Sequence[Row]) -> None:
        versions = self._rows("model_versions", job_id=job["id"])
        assert [one["number"] for one in versions] == list(range(len(versions)))
        assert job["latest_version"] == job["rounds_committed"] == len(versions) - 1
        committed = [one["id"] for one in rounds
                     if one["purpose"] == "train" and one["state"] == R.COMMITTED]  # fmt: skip
        assert sorted(one["round_id"] for one in versions[1:]) == sorted(committed)
        commits = self._rows("events", job_id=job["id"], kind="round.committed")
        assert len({one["round_id"] for one in commits}) == len(commits), "committed twice"
        if job["id"] in self.cancelled:
            assert job["state"] == J.CANCELLED
        if job["state"] == J.PAUSED:
            assert job["state_reason"] in PAUSES, job["state_reason"]

    def _check_late(self, assignments: Sequence[Row], rounds: Mapping[int, Row]) -> None:
        """Only a job that folds late updates holds any, and the next round to close takes them."""
        held = [row for row in assignments
                if row["state"] == A.LATE and row["update_size_bytes"] is not None]  # fmt: skip
        for row in held:
            step = rounds[row["round_id"]]
            assert self._specs[step["job_id"]].rounds.late == "fold"
            assert step["purpose"] == "train"
            for one in rounds.values():
                closed = one["job_id"] == step["job_id"] and one["purpose"] == "train"
                if closed and (one["closed_at"] or "") > row["finished_at"]:
                    was_open = one["state"] == R.ABANDONED  # before it could take anything
                    assert row["folded_round_id"] is not None or was_open, "passed over"

    def _check_ended(self, ended: Row, rows: Sequence[Row], late: Sequence[Row]) -> None:
        unfinished = [row["id"] for row in rows if row["state"] in UNFINISHED_ASSIGNMENTS]
        assert not unfinished, f"round {ended['number']} ended without {unfinished}"
        accepted = [row for row in rows if row["state"] == A.ACCEPTED]
        assert ended["accepted"] == len(accepted)
        self._check_time(ended, rows)
        if ended["state"] == R.ABANDONED:
            (job,) = self._rows("jobs", id=ended["job_id"])
            cancelled = job["state"] == J.CANCELLED and ended["reason"] == job["state_reason"]
            assert cancelled or len(accepted) < ended["quorum"], ended["reason"]
            ours = [row for row in rows if row["folded_round_id"] in (None, ended["id"])]
            assert all(row["weight"] is None for row in (*ours, *late))
        elif ended["purpose"] == "train":
            self._check_quorum(ended, accepted)
            self._check_staleness(ended, late)
            ours = [row for row in rows if row["folded_round_id"] in (None, ended["id"])]
            together = {row["id"]: row for row in (*ours, *late)}
            self._check_version(ended, list(together.values()))

    def _check_time(self, ended: Row, rows: Sequence[Row]) -> None:
        """A round waits for those who may still come, until it has its cohort or its deadline."""
        complete = sum(_came(row) for row in rows) >= ended["cohort"]
        for row in rows:
            if row["state"] == A.RELEASED:
                assert complete, "released without the cohort"
            elif row["reason"] == "the round ended before its update came":
                (job,) = self._rows("jobs", id=ended["job_id"])
                over = ended["closed_at"] >= ended["deadline_at"]
                assert over or job["state"] == J.CANCELLED, "the round did not wait"

    def _check_quorum(self, ended: Row, accepted: Sequence[Row]) -> None:
        policy = self._specs[ended["job_id"]].rounds
        assert 1 <= ended["quorum"] <= len(accepted)
        lowered = ended["quorum"] < policy.quorum
        assert ended["quorum"] <= policy.quorum
        assert not lowered or policy.without_quorum == "lower"

    def _check_staleness(self, ended: Row, late: Sequence[Row]) -> None:
        (base,) = self._rows("model_versions", id=ended["base_version_id"])
        for row in late:
            (own,) = self._rows("rounds", id=row["round_id"])
            (was,) = self._rows("model_versions", id=own["base_version_id"])
            assert own["job_id"] == ended["job_id"]
            assert row["staleness"] == base["number"] - was["number"] >= 0

    def _check_version(self, ended: Row, rows: Sequence[Row]) -> None:
        """The version is a function of its base and the held updates; the rest is unsound."""
        late = [row for row in rows if row["state"] == A.LATE]
        accepted = [row for row in rows if row["state"] == A.ACCEPTED]
        accepted += [row for row in late if row["folded_round_id"] == ended["id"]]
        rule = self._specs[ended["job_id"]].aggregation.chosen
        base = self._weights[ended["base_version_id"]]
        before = self._optimizer_states.get(ended["base_version_id"])
        weights, state, fault = self._folded(rule, base, before, accepted)
        assert not fault
        (version,) = self._rows("model_versions", round_id=ended["id"])
        assert version["parent_version_id"] == ended["base_version_id"]
        assert version["weights_digest"] == _digest(self._layout, weights), "other weights"
        self._weights[version["id"]] = weights
        self._check_state(version, state)
        shares = rule.shares([discounted(row["examples"], row["staleness"]) for row in accepted])
        assert [row["weight"] for row in accepted] == shares
        for row in rows:
            assert row in accepted or row["weight"] is None
            if row["state"] == A.REJECTED and row["reason"].startswith(BY_THE_FOLD):
                assert self._is_unsound(rule, base, before, row), (
                    f"refused without cause: {row['reason']}"
                )

    def _check_state(self, version: Row, state: ServerState | None) -> None:
        """A server optimizer's state commits with its version, and goes on from the one before."""
        if state is None:
            assert version["optimizer_state_digest"] is None
            return
        found = _digest(state.layout, state.weights)
        assert version["optimizer_state_digest"] == found, "another state"
        self._optimizer_states[version["id"]] = state

    def _is_unsound(self, rule: Rule, base: Weights, before: ServerState | None, row: Row) -> bool:
        if row["update_digest"] in self.damaged:
            return True
        return bool(self._folded(rule, base, before, [row])[2])

    def _folded(
        self, rule: Rule, base: Weights, before: ServerState | None, rows: Sequence[Row]
    ) -> tuple[Weights, ServerState | None, str]:
        """The weights and the state that these updates make, and what is wrong with them."""
        server = None if before is None else ServerStep(before)
        contributions = [self._contribution(row) for row in rows]
        weights = fold(rule, base, contributions, self._layout, 1, server)
        fault, state = fault_of(weights, self._layout), None
        if server is not None:
            state = server.after
            fault = fault or fault_of(state.weights, state.layout)
        return weights, state, fault

    def _contribution(self, row: Row) -> Contribution:
        digest = row["update_digest"]
        update = StoredUpdate(self._copies / digest, self._layout, EXACT)
        return Contribution(digest, discounted(row["examples"], row["staleness"]), update)

    def _rows(self, table: str, **equal: object) -> list[sqlite3.Row]:
        where = " and ".join(f"{name} = ?" for name in equal) or "1"
        query = f"select * from {table} where {where} order by id"
        return self._connection.execute(query, list(equal.values())).fetchall()

    def ended(self) -> bool:
        """Whether every job and every round has ended, completed jobs with all their versions."""
        for job in self._rows("jobs"):
            if job["state"] not in (J.COMPLETED, J.CANCELLED):
                return False
            if job["state"] == J.COMPLETED:
                assert job["rounds_committed"] == self._specs[job["id"]].rounds.count
        return all(one["ended_at"] is not None for one in self._rows("rounds"))

    def open_updates(self) -> list[str]:
        """The accepted updates of rounds that have not ended."""
        query = (
            "select distinct a.update_digest from assignments a join rounds r on r.id = a.round_id "
            "where r.ended_at is null and a.state = 'accepted' and a.update_digest <> '' order by 1"
        )
        return [digest for (digest,) in self._connection.execute(query)]


def _came(row: Row) -> bool:
    return row["state"] == A.ACCEPTED or row["reason"].startswith(BY_THE_FOLD)


def _digest(layout: Layout, weights: Weights) -> str:
    return hashlib.sha256(b"".join(map(bytes, weights_chunks(layout, weights)))).hexdigest()
