"""A job from its submission to its model, over real processes, on both databases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from torch import nn

from coordinator.cli.models import models
from coordinator.compiler.compiled_plan import CompiledPlan
from tests.postgresql import PostgresqlServer
from tests.system.fleet import Fleet, fleets
from tests.system.processes import run

CLIENTS = ("ada", "bob")


@dataclass
class Done:
    """A fleet whose job `tiny` has completed, and the URL of its history."""

    fleet: Fleet
    database: str
    job: str


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def done(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    plan: CompiledPlan,
) -> Iterator[Done]:
    with fleets(tmp_path_factory.mktemp(request.param), plan) as make:
        fleet = make()
        database, options = fleet.database, ("--lease-seconds", "20")
        if request.param == "postgresql":
            server: PostgresqlServer = request.getfixturevalue("postgresql_server")
            database = server.create_database()
            options = ("--database", database, *options)
        fleet.serve(*options)
        for name in CLIENTS:
            fleet.client(name, "--tag", f"site={name}-site")
        job = fleet.submit(count=4)
        fleet.finish(job)
        yield Done(fleet, database, job)


def both_ways(done: Done, *arguments: str) -> Any:
    """A listing from the coordinator, which must be what the database itself says."""
    asked = done.fleet.json(*arguments)
    read = json.loads(done.fleet.cli(*arguments, "--json", "--database", done.database).out)
    for answer in (read, asked):
        for one in answer if isinstance(answer, list) else [answer]:
            # a client may be heard of between the two questions
            one.pop("attending", None), one.pop("last_seen_at", None)
    assert asked == read
    return asked


def test_rounds_commit_and_accuracy_rises(done: Done) -> None:
    """A whole job: rounds commit, one version each, measured on held-out data and on clients."""
    rounds = both_ways(done, "rounds", "list", done.job)
    trained = [one for one in rounds if one["purpose"] == "train"]
    assert [one["state"] for one in trained] == ["committed"] * 4
    assert [(one["base_version"], one["version"]) for one in trained] == [
        (n, n + 1) for n in range(4)
    ]
    assert [one["accepted"] for one in trained] == [2] * 4
    first, last = trained[0]["metrics_coordinator"], trained[-1]["metrics_coordinator"]
    assert last["accuracy"] >= 0.8
    assert last["loss"] < first["loss"]
    assert all(set(one["metrics_clients"]) == {"loss", "accuracy"} for one in trained)
    (measured,) = [one for one in rounds if one["purpose"] == "evaluate"]
    assert (measured["base_version"], measured["version"]) == (4, -1)
    assert measured["metrics_clients"]["accuracy"] > trained[0]["metrics_clients"]["accuracy"]


def test_every_row_of_the_ledger_is_complete(done: Done) -> None:
    """A whole job: metrics before and after, norm, bytes, seconds; the shares sum to one."""
    for number in (1, 4):
        rows = both_ways(done, "rounds", "show", done.job, str(number))["assignments"]
        assert sorted(row["client"] for row in rows) == list(CLIENTS)
        assert sum(row["fold_weight"] for row in rows) == pytest.approx(1.0, abs=1e-12)
        for row in rows:
            assert (row["state"], row["examples"], row["encoding"]) == ("accepted", 48, "fp32")
            assert set(row["metrics_before"]) == set(row["metrics_after"]) == {"loss", "accuracy"}
            assert row["norm"] > 0
            assert row["bytes_up"] > 100
            assert row["bytes_down"] > 100
            assert row["train_seconds"] > 0
            assert row["upload_seconds"] > 0
            assert len(row["update_digest"]) == 64
            assert row["offered_at"] < row["ended_at"]


def test_history_by_command(done: Done) -> None:
    """A whole job: jobs, clients and models, in JSON and in tables, from both places."""
    (job,) = both_ways(done, "jobs", "list")
    assert (job["state"], job["rounds_done"], job["latest_version"]) == ("completed", 4, 4)
    shown = both_ways(done, "jobs", "show", done.job)
    assert shown["state_reason"] == "all 4 rounds are done"
    clients = both_ways(done, "clients", "list")
    assert [(one["name"], one["tags"]) for one in clients] == [
        (name, {"site": f"{name}-site"}) for name in CLIENTS
    ]
    assert not any(one["insecure"] for one in clients)
    client = both_ways(done, "clients", "show", "ada")
    assert [(one["round_number"], one["state"]) for one in client["assignments"]][-4:] == [
        (n, "accepted") for n in (4, 3, 2, 1)
    ]
    best = both_ways(done, "models", "list", done.job, "--best", "accuracy")
    accuracies = [one["metrics_coordinator"]["accuracy"] for one in best]
    assert accuracies == sorted(accuracies, reverse=True)
    table = done.fleet.cli("rounds", "show", done.job, "2").out
    assert "accepted" in table
    assert "0.500" in table


def test_a_pulled_model_is_read_by_the_safetensors_library(done: Done, tmp_path: Path) -> None:
    """A whole job: `models pull` writes a file that other programs read."""
    path = tmp_path / "model.safetensors"
    done.fleet.cli("models", "pull", f"{done.job}@4", "-o", str(path))
    tensors = load_file(path)
    layout = done.fleet.plan.manifest.layout
    assert {name: array.shape for name, array in tensors.items()} == {
        spec.name: spec.shape for spec in layout.tensors
    }
    assert tensors["1.num_batches_tracked"] == 4 * 2 * 6
    latest = run(
        "models", "pull", done.job,
        environment={"HEADWATER_COORDINATOR": done.fleet.address}, folder=tmp_path,
    )  # fmt: skip
    assert latest.code == 0
    assert (tmp_path / f"{done.job}-4.safetensors").read_bytes() == path.read_bytes()


def test_a_pulled_model_predicts_in_stock_onnxruntime_as_in_torch(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole job: `models pull` in the other formats, and no file where it cannot."""
    pulled = done.fleet.cli(
        "models", "pull", f"{done.job}@4", "--format", "onnx", "-o", str(tmp_path / "tiny.onnx")
    )
    assert "tiny.onnx: version 4" in pulled.out
    points = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "tiny.onnx"))
    (scores,) = session.run(["output"], {"x": points})
    origin = session.get_modelmeta().custom_metadata_map
    assert (origin["headwater.job"], origin["headwater.version"]) == (done.job, "4")
    # In this process, where torch is loaded already.
    monkeypatch.chdir(tmp_path)
    arguments = ["pull", done.job, "--format", "torch", "--coordinator", done.fleet.address]
    assert CliRunner().invoke(models, arguments).output.startswith("tiny-4.pt: version 4")
    net = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)).eval()
    net.load_state_dict(torch.load(tmp_path / f"{done.job}-4.pt", weights_only=True))
    np.testing.assert_allclose(
        scores, net(torch.from_numpy(points)).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    for version, words in (("9", "tiny@4"), ("-1", "write JOB,"), ("4.0", "write JOB,")):
        failed = done.fleet.cli(
            "models", "pull", f"{done.job}@{version}", "--format", "onnx",
            "-o", str(tmp_path / "no.onnx"), code=2,
        )  # fmt: skip
        assert words in failed.err
    nowhere = done.fleet.cli(
        "models", "pull", done.job, "-o", str(tmp_path / "none" / "a.onnx"), code=2
    )
    assert "No such file or directory" in nowhere.err
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", f"{done.job}-4.pt"}


def test_names_that_do_not_exist(done: Done) -> None:
    """Unknown job, round, client and version names: exit code 2, with the names that are near."""
    fleet = done.fleet
    database = ("--database", done.database)
    for arguments, words in (
        (("jobs", "show", "tyni"), "tiny"),
        (("rounds", "list", "tinny", *database), "tiny"),
        (("rounds", "show", done.job, "44"), "4"),
        (("clients", "show", "bop", *database), "bob"),
        (("models", "list", done.job, "--best", "acuracy"), "accuracy"),
        (("models", "pull", f"{done.job}@9"), "tiny@4"),
        (("jobs", "cancel", "tyni"), "tiny"),
    ):
        failed = fleet.cli(*arguments, code=2)
        assert failed.err.startswith("headwater: ")
        assert len(failed.err.splitlines()) == 1
        assert words in failed.err


def test_a_database_can_be_checked_while_it_is_used(done: Done) -> None:
    """`headwater db check` beside the running coordinator."""
    assert "as it should be" in done.fleet.cli("db", "check", "--database", done.database).out


def test_a_second_coordinator_on_the_same_database_is_refused(done: Done, tmp_path: Path) -> None:
    """A second `serve` on the same database: refused, naming the holder, exit code 3."""
    failed = run(
        *("serve", "--listen", "127.0.0.1:0", "--data-directory", str(tmp_path / "other")),
        *("--database", done.database),
    )
    assert failed.code == 3
    assert len(failed.err.splitlines()) == 1, failed.err
    assert "is in use by headwater serve --listen 127.0.0.1:" in failed.err
    assert f"process {done.fleet.serving.popen.pid} on" in failed.err
