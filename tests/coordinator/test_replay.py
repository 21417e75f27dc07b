"""`headwater replay` on the database and blobs of a coordinator that committed a round."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.cli import run
from coordinator.cli.commands import headwater
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine.closing import close_round
from coordinator.engine.recovery import recover_run
from coordinator.engine.world import World
from coordinator.services.submission import submit_job
from headwater.layout import Weights
from headwater.safetensors import map_weights
from headwater.updates import Section, blocks_of
from headwater.v1 import control_pb2
from storage import history, rounds
from storage.collect import collect
from storage.records import JobRecord, JobState, RoundPurpose, RoundRecord, UpdateFacts
from tests.coordinator.test_submission import send
from tests.storage.world import World as Rows
from tests.system.device import Update, make_update
from tests.system.training import job_text, write_examples

EXAMPLES = {"a": 10, "b": 20, "c": 70}


@dataclass
class Past:
    """A coordinator's data directory with a job whose first round was folded of a, b and c."""

    directory: Path
    world: World
    rows: Rows
    plan: CompiledPlan
    job: JobRecord
    held_out: Path

    @property
    def round(self) -> RoundRecord:
        return self.rows.read(lambda s: history.round(s, self.job.reference, 1))

    @property
    def version_digest(self) -> str:
        return self.rows.read(lambda s: history.model(s, "tiny@1")).weights_digest

    def weights(self, digest: str) -> Weights:
        return map_weights(self.world.blobs.path(digest), self.plan.manifest.layout)

    def everything(self) -> tuple[list[str], list[str]]:
        """Every row and every file of the blobs."""
        with sqlite3.connect(self.directory / "headwater.db") as connection:
            rows = list(connection.iterdump())
        return rows, sorted(map(str, (self.directory / "blobs").rglob("*")))


def drawn(plan: CompiledPlan, name: str) -> tuple[Update, np.ndarray, int]:
    """An update of a client: with its change of the float vector, and its counter."""
    layout = plan.manifest.layout
    draw = np.random.default_rng(sum(name.encode()))
    change = draw.normal(0, 0.05, layout.float_count).astype("<f4")
    counter = int(draw.integers(1, 100))
    integers = np.full(layout.integer_count, counter, "<i8")
    payloads = [
        (integers if block.section is Section.INTEGERS else change)[block.place].tobytes()
        for block in blocks_of(layout)
    ]
    return Update(tuple(payloads)), change, counter


def unsound(plan: CompiledPlan) -> Update:
    """An update that would make a variance negative."""
    layout = plan.manifest.layout
    place = next(place for spec, place in layout.float_slices() if spec.positive)
    return make_update(layout, values={place.start: -50.0})


def accept(past: Past, step: RoundRecord, name: str, update: Update) -> None:
    """An update of a client as an upload leaves it: a blob and its row."""
    past.world.blobs.write(update.encoded)
    facts = UpdateFacts(update.digest, len(update.encoded), "fp32", EXAMPLES[name])
    at = next(one.id for one in step.assignments if one.client_name == name)
    past.rows.write(
        lambda s: rounds.accept_update(s, assignment_id=at, update=facts, now=past.rows.tick())
    )


MakePast = Callable[..., Past]


@pytest.fixture
def make_past(tmp_path: Path, world: World, rows: Rows, plan: CompiledPlan) -> MakePast:
    def make(aggregation: str = "", *, measured: bool = True, unsound_of: str = "") -> Past:
        held_out = write_examples(tmp_path / "held-out.npz", seed=1000)
        place = replace(world, held_out={"clusters": str(held_out)} if measured else {})
        send(place, plan)
        request = control_pb2.SubmitJobRequest(
            job_file=f"{job_text(cohort=3, quorum=3)}\n[aggregation]\n{aggregation}",
            plan_digest=plan.digest,
        )
        job = asyncio.run(submit_job(place, request))
        past = Past(tmp_path, place, rows, plan, job, held_out)
        rows.client("c")
        rows.state(job.reference, JobState.RUNNING)
        step = rows.open_round(job, client_ids=("id-a", "id-b", "id-c"))
        for name in EXAMPLES:
            is_unsound = name == unsound_of
            accept(past, step, name, unsound(plan) if is_unsound else drawn(plan, name)[0])

        async def close() -> None:
            await close_round(place, await recover_run(place, job), "the cohort is complete")

        asyncio.run(close())
        assert past.round.state == "committed"
        return past

    return make


@pytest.fixture
def past(make_past: MakePast) -> Past:
    return make_past()


@pytest.fixture
def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `headwater replay tiny …`; its exit code, and what it printed or its error."""

    def command(*arguments: str, job: str = "tiny", directory: Path = tmp_path) -> tuple[int, str]:
        words = ["replay", job, *arguments, "--data-directory", str(directory)]
        code = run(headwater, words)
        said = capsys.readouterr()
        if code > 1:
            assert said.out == ""
            assert len(said.err.splitlines()) == 1 or said.err.startswith("Usage:"), said.err
        return code, said.err if code > 1 else said.out

    return command


def asked(replay: Callable[..., tuple[int, str]], *arguments: str, code: int = 0) -> Any:
    found, text = replay(*arguments, "--json")
    assert found == code, text
    return json.loads(text)


@pytest.mark.parametrize(
    ("table", "shares"),
    [
        ("", [0.1, 0.2, 0.7]),
        ('rule = "median"', [1 / 3] * 3),
        ('rule = "trimmed_mean"\ntrim = 0.34', [1 / 3] * 3),
        ('server_optimizer = { name = "momentum", learning_rate = 0.5 }', [0.1, 0.2, 0.7]),
    ],
)
def test_a_round_is_folded_to_the_same_bits(make_past, replay, table, shares) -> None:
    """By each rule, also over threads; the ledger has the weight of each update."""
    past = make_past(table)
    assert [one.weight for one in past.round.assignments] == pytest.approx(shares)
    for threads in ("1", "3"):
        found = asked(replay, "1", "--threads", threads)
        assert found["equal"]
        assert found["replayed"]["digest"] == found["committed"]["digest"] == past.version_digest
        assert list(found["shares"].values()) == pytest.approx(shares)


def test_the_digests_are_printed_and_other_weights_end_with_1(past, replay) -> None:
    """What the ledger says does not give the version's weights any more."""
    code, text = replay("1")
    assert code == 0
    assert text.count(past.version_digest) == 2
    assert "the same weights, bit for bit" in text
    with sqlite3.connect(past.directory / "headwater.db") as connection:
        connection.execute("UPDATE assignments SET examples = 11 WHERE examples = 10")
    code, text = replay("1")
    assert code == 1
    assert text.count(past.version_digest) == 1
    assert "other weights than the committed ones" in text


def test_what_would_have_been_without_a_client(past, replay, tmp_path) -> None:
    """The mean of the others, measured beside what was; rows and blobs stay as they were."""
    before = past.everything()
    output = tmp_path / "without.safetensors"
    data = f"clusters={past.held_out}"
    found = asked(replay, "1", "--without", "c", "--data", data, "-o", str(output))
    assert past.everything() == before
    assert not found["equal"]
    assert (found["without"], found["shares"]) == (["c"], pytest.approx({"a": 1 / 3, "b": 2 / 3}))
    layout = past.plan.manifest.layout
    made = map_weights(output, layout)
    base = past.weights(past.round.base_weights_digest)
    (_, first, counted), (_, second, again) = drawn(past.plan, "a"), drawn(past.plan, "b")
    expected = base.floats + (first.astype(float) * 10 + second.astype(float) * 20) / 30
    np.testing.assert_allclose(made.floats, expected, rtol=1e-6)
    assert made.integers.tolist() == [max(counted, again)]
    assert found["committed"]["metrics"] == past.round.coordinator_metrics
    assert found["replayed"]["metrics"].keys() == {"loss", "accuracy"}
    assert found["replayed"]["metrics"] != found["committed"]["metrics"]
    _, text = replay("1", "--without", "c", "--data", data)
    was, would_be = (found[key]["metrics"]["accuracy"] for key in ("committed", "replayed"))
    assert ["accuracy", f"{was:.4f}", f"{would_be:.4f}"] in map(str.split, text.splitlines())
    assert re.search(r"^updates +2 of 3$", text, re.M)
    assert "not measured: --data clusters=PATH" in replay("1", "--without", "c")[1]


def test_what_another_rule_would_have_made(past, replay, tmp_path) -> None:
    output = tmp_path / "median.safetensors"
    found = asked(replay, "1", "--rule", "median", "-o", str(output))
    assert (found["rule"], found["equal"]) == ("median", False)
    changes = [drawn(past.plan, name) for name in EXAMPLES]
    middle = np.median([change for _, change, _ in changes], axis=0)
    base = past.weights(past.round.base_weights_digest)
    made = map_weights(output, past.plan.manifest.layout)
    np.testing.assert_array_equal(made.floats, (base.floats + middle.astype(float)).astype("f4"))
    assert made.integers.tolist() == [sorted(counter for _, _, counter in changes)[1]]
    trimmed = asked(replay, "1", "--rule", "trimmed_mean", "--trim", "0.4")
    assert (trimmed["rule"], trimmed["trim"]) == ("trimmed_mean", 0.4)
    # One of three is left at each place: the middle one.
    assert trimmed["replayed"]["digest"] == found["replayed"]["digest"]
    _, text = replay("1", "--rule", "trimmed_mean", "--trim", "0.4")
    assert "trimmed_mean trim 0.4, not weighted_mean" in text


def test_the_server_optimizer_stays_unless_the_rule_is_a_robust_one(make_past, replay) -> None:
    past = make_past('server_optimizer = { name = "momentum", learning_rate = 0.5 }')
    own = asked(replay, "1", "--without", "c")["server_optimizer"]
    assert own == {"name": "momentum", "learning_rate": 0.5, "momentum": 0.9, "nesterov": False}
    assert re.search(r"^optimizer +momentum 0.9, learning rate 0.5$", replay("1")[1], re.M)
    found = asked(replay, "1", "--rule", "median")
    assert (found["server_optimizer"], found["equal"]) == (None, False)
    assert "none, not momentum 0.9, learning rate 0.5" in replay("1", "--rule", "median")[1]
    assert past.round.base_optimizer_state_digest is None


def test_an_update_that_the_fold_refused_stays_out(make_past, replay) -> None:
    past = make_past(unsound_of="b")
    assert [one.state for one in past.round.assignments] == ["accepted", "rejected", "accepted"]
    found = asked(replay, "1")
    assert found["equal"]
    assert found["shares"].keys() == {"a", "c"}
    code, text = replay("1", "--without", "b")
    assert (code, "which folded those of a, c" in text) == (2, True)


def test_a_what_if_that_changes_nothing_ends_with_0_whatever_the_ledger_says(past, replay) -> None:
    assert asked(replay, "1", "--rule", "weighted_mean")["equal"]
    with sqlite3.connect(past.directory / "headwater.db") as connection:
        connection.execute("UPDATE assignments SET examples = 11 WHERE examples = 10")
    assert not asked(replay, "1", "--rule", "weighted_mean")["equal"]


def test_the_weights_and_their_metrics_are_the_versions_own(past, replay, tmp_path) -> None:
    output = tmp_path / "again.safetensors"
    found = asked(replay, "1", "--data", f"clusters={past.held_out}", "-o", str(output))
    assert output.read_bytes() == past.world.blobs.read(past.version_digest)
    assert found["replayed"]["metrics"] == found["committed"]["metrics"]
    assert found["replayed"]["metrics"] == past.round.coordinator_metrics
    assert past.round.coordinator_metrics


def test_a_version_that_was_not_measured_is_measured_beside(make_past, replay) -> None:
    past = make_past(measured=False)
    assert past.round.coordinator_metrics == {}
    assert asked(replay, "1")["committed"]["metrics"] == {}
    found = asked(replay, "1", "--without", "a", "--data", f"clusters={past.held_out}")
    own = asked(replay, "1", "--data", f"clusters={past.held_out}")
    assert found["committed"]["metrics"] == own["replayed"]["metrics"]
    assert found["replayed"]["metrics"] != found["committed"]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7",), "there is no train round of job tiny '7'; there is 1"),
        (("1", "--without", "zed"), "--without zed: no update of this client is in round 1 of job "
         "tiny, which folded those of a, b, c"),
        (("1", "--without", "a", "--without", "b", "--without", "c"),
         "--without leaves no update of round 1 of job tiny, which folded those of a, b, c"),
        (("1", "--trim", "0.2"), "--trim: only for trimmed_mean; the rule is weighted_mean"),
        (("1", "--rule", "trimmed_mean"),
         "--trim: 0.1 of 3 updates cuts none: take a larger trim, or at least 10 updates"),
        (("1", "--data", "digits=x.npz"),
         "--data digits: job tiny is of the data set clusters: --data clusters=PATH"),
        (("1", "--data", "clusters=nowhere.npz"), "there is no such file or folder"),
        (("1", "-o", "nowhere/x.safetensors"),
         "--output nowhere/x.safetensors: there is no folder nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(past, replay, arguments, message) -> None:
    code, text = replay(*arguments)
    assert code == 2
    assert message in text


def test_an_unknown_job_and_a_folder_without_blobs(past, replay, tmp_path) -> None:
    assert replay("1", job="tiger") == (2, "headwater: there is no job 'tiger'; there is tiny\n")
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    code, text = replay("1")
    assert (code, "is no coordinator's data directory" in text) == (2, True)
    assert not (tmp_path / "blobs").exists()


def test_a_round_that_made_no_version(past, replay) -> None:
    """Open, abandoned, and one that only evaluated."""
    step = past.rows.open_round(past.job, 2)
    code, text = replay("2")
    assert code == 2
    assert "round 2 of job tiny is open: replay it once it is committed" in text
    past.rows.write(
        lambda s: rounds.abandon(
            s, round_id=step.id, reason="too few", fates={}, now=past.rows.tick()
        )
    )
    code, text = replay("2")
    assert code == 2
    assert "was abandoned and changed no weights, so there is nothing to replay: too few" in text
    past.rows.open_round(past.job, 3, purpose=RoundPurpose.EVALUATE)
    code, text = replay("3")
    assert code == 2
    assert "round 3 of job tiny evaluated a version and changed no weights" in text


def test_updates_that_retention_has_removed(past, replay) -> None:
    collect(past.world.database, past.world.blobs, now=past.world.clock.now(), keep_update_rounds=0)
    code, text = replay("1")
    assert code == 2
    assert "the updates of round 1 of job tiny were collected" in text
    assert "`headwater serve --keep-update-rounds`" in text


@pytest.mark.parametrize("what", ["update", "base"])
def test_a_damaged_or_missing_blob(past, replay, what) -> None:
    """Named before anything is folded; an update that is left out is not needed."""
    digest = past.round.base_weights_digest
    if what == "update":
        digest = drawn(past.plan, "b")[0].digest
    path = past.world.blobs.path(digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, text = replay("1")
    assert code == 3
    assert f"blob {digest} in" in text
    assert "is damaged" in text
    path.unlink()
    code, text = replay("1")
    assert code == 3
    if what == "update":
        assert "the update of b in round 1 of job tiny is not in" in text
        assert not asked(replay, "1", "--without", "b")["equal"]
    else:
        assert f"blob {digest} is missing from" in text
