"""Pure parts: backoff, seeds, sizes, settings, profiles, logs."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.backoff import Backoff
from edge_client.profile import measure_profile
from edge_client.runtime import choose_backend, choose_device
from edge_client.seeds import seed_of_epoch, seed_of_step
from edge_client.settings import check_settings, parse_data, parse_pairs, read_settings
from edge_client.sizes import parse_bytes, show_bytes
from headwater.errors import MissingExtraError, UsageError

ALLOWED = (
    "allowed: coordinator, data, state, name, tag, trainer, device, threads, cache-bytes, "
    "log-format"
)


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_waits_double_up_to_the_longest_with_jitter(draws: list[float]) -> None:
    values = iter(draws)
    backoff = Backoff(lambda: next(values), first_seconds=0.5, longest_seconds=8)
    for span in (0.5, 1, 2, 4, 8, 8, 8):
        assert span / 2 <= backoff.next_seconds() <= span
    backoff.reset()
    assert backoff.next_seconds() <= 0.5


def test_seeds_are_fixed_for_ever() -> None:
    # Computed apart from the code, from SplitMix64 as published.
    assert seed_of_epoch(0, 0) == 0xE220A8397B1DCDAF >> 1
    assert seed_of_step(0, 0) == 0x6E789E6AA1B965F4 >> 1
    assert seed_of_epoch(0, 1) == 0x06C45D188009454F >> 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32))
def test_seeds_are_signed_64_bit_and_apart(seed: int, counter: int) -> None:
    values = {seed_of_epoch(seed, counter), seed_of_step(seed, counter)}
    assert len(values) == 2
    assert all(0 <= value < 2**63 for value in values)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("10", 10), ("500MB", 500 * 10**6), ("2GiB", 2**31), ("1.5 kib", 1536)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "x", "2 parsecs", "-1", "1e3"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size: write a number and B, KB"):
        parse_bytes(text)


def test_sizes_are_shown_with_binary_units() -> None:
    assert [show_bytes(n) for n in (0, 1023, 1536, 2**31, 5 * 2**40)] == [
        "0 B", "1023 B", "1.5 KiB", "2 GiB", "5 TiB",
    ]  # fmt: skip


def test_a_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text(
        'coordinator = "hub:7700"\nstate = "/var/lib/headwater"\nname = "north-1"\n'
        'trainer = "onnxruntime"\ndevice = "cpu"\nthreads = 2\ncache-bytes = "1GiB"\n'
        'log-format = "json"\n[data]\ndigits = "digits:"\n[tag]\nsite = "north"\n'
    )
    settings = check_settings(read_settings(path))
    assert settings.coordinator == "hub:7700"
    assert settings.data == {"digits": "digits:"}
    assert settings.tag == {"site": "north"}
    assert settings.state == Path("/var/lib/headwater")
    assert (settings.threads, settings.cache_bytes) == (2, 2**30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", f"unknown key 'colour'; {ALLOWED}"),
        ("threads = '2'", "threads = '2' is wrong: a positive integer is expected"),
        ("threads = true", "threads = True is wrong: a positive integer is expected"),
        ("coordinator = 5", "coordinator = 5 is wrong: a text is expected"),
        ("trainer = 'jax'", "trainer = 'jax' is wrong: allowed: auto, onnxruntime, torch"),
        ("data = 'x'", "data = 'x' is wrong: a table of texts is expected"),
        ("[data]\n'a b' = 'x'", "is not NAME=PATH"),
        ("cache-bytes = 'lots'", "'lots' is not a size"),
        ("= 3", "is not TOML"),
    ],
)
def test_wrong_settings_name_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "client.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_settings(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_settings_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read: No such file"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("address", ["hub", "hub:", ":7700", "hub:port", "hub:0", "hub:70000"])
def test_a_coordinator_is_host_and_port(address: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        check_settings({"coordinator": address})


def test_what_check_settings_refuses() -> None:
    with pytest.raises(UsageError, match="no coordinator is given: use --coordinator HOST:PORT"):
        check_settings({})
    with pytest.raises(UsageError, match="--threads 0 is wrong: at least 1"):
        check_settings({"coordinator": "a:1", "threads": 0})


def test_repeated_options() -> None:
    assert parse_pairs("tag", ["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UsageError, match="--tag 'a' is not KEY=VALUE"):
        parse_pairs("tag", ["a"])
    with pytest.raises(UsageError, match="--tag names 'a' twice"):
        parse_pairs("tag", ["a=1", "a=2"])
    with pytest.raises(UsageError, match="--data names 'a' twice"):
        parse_data(["a=1", "a=2"])


def test_the_profile_measures_this_device(tmp_path: Path) -> None:
    profile = measure_profile(tmp_path, runtime="onnxruntime", device="cpu", threads=3)
    assert (profile.runtime, profile.device, profile.cores) == ("onnxruntime", "cpu", 3)
    assert profile.memory_bytes > 2**20
    assert profile.disk_free_bytes > 0
    assert profile.platform.startswith(sys.platform)


def test_the_backend_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_backend("auto") == "onnxruntime"
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[torch\]'"):
        choose_backend("torch")


def test_the_backend_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert [choose_backend(trainer) for trainer in ("auto", "torch", "onnxruntime")] == [
        "torch", "torch", "onnxruntime",
    ]  # fmt: skip


def test_onnxruntime_has_no_gpu_here() -> None:
    assert choose_device("onnxruntime", "auto") == "cpu"
    with pytest.raises(UsageError, match="--device cuda needs --trainer torch"):
        choose_device("onnxruntime", "cuda")
