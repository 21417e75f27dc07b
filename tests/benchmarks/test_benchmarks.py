"""Every benchmark runs, small, and says what it measured beside what floor."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from benchmarks import exchange
from benchmarks.deployment import periods
from benchmarks.random_plan import random_plan
from headwater.v1 import control_pb2

ROOT = Path(__file__).parents[2]
SMALL = ("--clients", "2", "--rounds", "2", "--parameters", "1000")


def lines_of(name: str, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--json", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        assert line["benchmark"] == name.removesuffix(".py")
        assert line["environment"]["cores"] >= 1
        assert line["environment"]["grpcio"]
    return lines


@pytest.mark.slow
def test_every_encoding_stands_beside_a_copy() -> None:
    cases = {line["encoding"]: line for line in lines_of("codecs.py", "--repeats", "1")}
    assert cases["fp32"]["share"] == 1 and cases["fp32"]["error"] == 0
    assert 0.19 < cases["int8+zstd"]["share"] < cases["int8"]["share"] < 0.26
    assert cases["topk:0.01"]["share"] < 0.01
    assert all(line["encode"] > 0 and line["decode"] > 0 < line["copy"] for line in cases.values())


@pytest.mark.slow
def test_the_overhead_of_a_round_stands_beside_a_bare_exchange() -> None:
    (case,) = lines_of("round_overhead.py", *SMALL)
    assert (case["clients"], case["rounds"]) == (2, 2)
    assert case["p95_seconds"] >= case["median_seconds"] > 0
    assert case["times_floor"] == case["median_seconds"] / case["floor_median_seconds"]


@pytest.mark.slow
def test_the_cost_of_a_large_model_has_memory_and_three_floors() -> None:
    (case,) = lines_of("large_model.py", *SMALL)
    assert case["rounds"] == 2
    assert case["coordinator_mib"] > 10
    assert case["client_mib"] > 10
    for floor in ("grpc_seconds", "tcp_seconds", "write_seconds"):
        assert case[floor] > 0


@pytest.mark.slow
def test_recovery_has_its_past_in_the_database() -> None:
    own, past = lines_of("recovery.py", "--rounds", "40", "--starts", "1")
    assert own["past_rounds"] < past["past_rounds"] == 40
    assert past["ledger_rows"] == 160
    assert past["median_seconds"] > 0


@pytest.mark.slow
def test_a_durable_upload_stands_beside_memory_and_disk() -> None:
    (case,) = lines_of("durable_upload.py", "--parameters", "1000", "--uploads", "2")
    slower = max(case["memory_seconds"], case["disk_seconds"])
    assert case["ratio"] == case["durable_seconds"] / slower > 0


@pytest.mark.slow
def test_cifar10_is_trained_both_ways(tmp_path: Path) -> None:
    for name, count in (("train", 64), ("test", 20)):
        write_images(tmp_path / f"{name}.parquet", count)
    (line,) = lines_of("cifar10.py", "--data", str(tmp_path), "--rounds", "1")
    assert line["round"] == 1
    assert 0 <= line["federated_accuracy"] <= 1
    assert 0 <= line["centralized_accuracy"] <= 1
    assert line["seconds"] > 0


def write_images(path: Path, count: int) -> None:
    generator = np.random.default_rng(count)
    images = [{"bytes": png(generator), "path": None} for _ in range(count)]
    labels = [index % 10 for index in range(count)]
    parquet.write_table(pyarrow.table({"img": images, "label": labels}), path)


def png(generator: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def test_the_floors_move_the_bytes_and_count_the_rounds() -> None:
    size_bytes = exchange.CHUNK_BYTES + 5
    for seconds in (
        exchange.grpc_seconds(2, size_bytes, 3),
        exchange.tcp_seconds(2, size_bytes, 3),
    ):
        assert len(seconds) == 3
        assert min(seconds) > 0
    assert len(exchange.write_seconds(size_bytes, 2)) == 2


@pytest.mark.parametrize("size_bytes", [1, exchange.CHUNK_BYTES, 2 * exchange.CHUNK_BYTES + 1])
def test_an_exchange_has_exactly_its_bytes(size_bytes: int) -> None:
    assert sum(map(len, exchange.message_of(size_bytes))) == size_bytes


def test_a_random_plan_is_whole_and_of_its_size() -> None:
    plan = random_plan(1003)
    for name in plan.manifest.members:
        plan.read(name)
    weights = plan.initial_weights()
    assert weights.floats.size == 1003
    assert len(np.unique(weights.floats)) > 990


def test_periods_leave_no_time_out() -> None:
    rounds = []
    for nanoseconds in (0, 1_500_000_000, 4_000_000_000):
        one = control_pb2.Round()
        one.opened_at.FromNanoseconds(nanoseconds)
        rounds.append(one)
    assert all(map(math.isclose, periods(rounds), [1.5, 2.5]))
