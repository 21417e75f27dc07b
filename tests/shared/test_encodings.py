"""What every encoding promises, and the textbook's cases for and against error feedback."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.encodings.compressed import zstd
from headwater.encodings.encoding import Encoding, uniform
from headwater.encodings.integers import INT4, INT8
from headwater.encodings.names import PARTS, encoding_named, parts_of
from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec, Weights
from headwater.update_encoder import UpdateEncoder
from headwater.updates import blocks_of, decode_block, maximum_payload_bytes

PLAIN = ("fp32", "bf16", "int8", "int4", "topk:0.01", "topk:0.25", "topk:1", "topk:0.05:int8")
NAMES = (*PLAIN, *(f"{name}+zstd" for name in PLAIN))
encodings = pytest.mark.parametrize("encoding", [encoding_named(name) for name in NAMES], ids=NAMES)


def round_trip(encoding: Encoding, change: np.ndarray, seed: int = 7) -> np.ndarray:
    payload = encoding.encode(change, seed)
    assert len(payload) <= encoding.maximum_bytes(change.size)
    decoded = encoding.decode(memoryview(payload), change.size)
    assert (decoded.dtype, decoded.shape) == (np.float32, change.shape)
    return decoded


def drawn(count: int, seed: int = 0, scale: float = 1e-3) -> np.ndarray:
    """Changes as training makes them: many small ones, and a few that are large."""
    draw = np.random.default_rng(seed)
    return (draw.standard_t(3, count) * scale).astype(np.float32)


CASES = {
    "one": np.array([0.5], np.float32),
    "one zero": np.zeros(1, np.float32),
    "zeros": np.zeros(1000, np.float32),
    "a negative zero": np.array([-0.0, 1.0], np.float32),
    "less than a group": drawn(63),
    "a group": drawn(64),
    "more than a group": drawn(257),
    "one large among small": np.array([1e-30] * 300 + [1e30], np.float32),
    "subnormal": np.full(300, 1e-45, np.float32),
    "all alike": np.full(300, -3.0, np.float32),
    "a block": drawn(BLOCK_ELEMENTS),
    "the first and the last": np.array([1, *[0] * 9998, 1], np.float32),
}


@encodings
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_no_value_is_further_away_than_the_bound(encoding: Encoding, change: np.ndarray) -> None:
    decoded = round_trip(encoding, change)
    error = np.abs(decoded.astype(np.float64) - change)
    assert error.max() <= encoding.error_bound(change) * (1 + 1e-6)
    if not change.any():
        assert not decoded.any()


@encodings
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_bound_holds_for_any_values(encoding: Encoding, data: st.DataObject) -> None:
    values = st.floats(-(2.0**100), 2.0**100, width=32)
    change = np.array(data.draw(st.lists(values, min_size=1, max_size=200)), np.float32)
    decoded = round_trip(encoding, change, data.draw(st.integers(0, 2**63 - 1)))
    error = np.abs(decoded.astype(np.float64) - change)
    assert error.max() <= encoding.error_bound(change) * (1 + 1e-6)


@encodings
def test_the_same_seed_gives_the_same_bytes_and_the_name_gives_the_encoding(
    encoding: Encoding,
) -> None:
    change = drawn(1000)
    assert encoding.encode(change, 3) == encoding.encode(change.copy(), 3)
    assert encoding_named(encoding.name) == encoding
    assert parts_of(encoding.name) <= set(PARTS)


@pytest.mark.parametrize("encoding", [INT8, INT4], ids=["int8", "int4"])
def test_stochastic_rounding_is_right_in_the_mean(encoding: Encoding) -> None:
    """The mean of many is nearer than one of them by far more than a rounding that leans."""
    change = drawn(512)
    mean = np.mean([round_trip(encoding, change, seed) for seed in range(400)], axis=0)
    step = encoding.error_bound(change)
    # The error of one lies within a step; that of the mean of 400 within a step / 40 of 4 sigma.
    assert np.abs(mean - change).max() < 4 * step / 2 / np.sqrt(400)
    assert np.abs(round_trip(encoding, change) - change).max() > step / 4


def test_the_largest_values_are_the_ones_that_are_kept() -> None:
    change = drawn(10_000)
    decoded = round_trip(encoding_named("topk:0.01"), change)
    kept = np.flatnonzero(decoded)
    assert set(kept) == set(np.argsort(np.abs(change))[-100:])
    np.testing.assert_allclose(decoded[kept], change[kept], rtol=2**-8)


def test_of_those_that_are_alike_the_first_are_kept() -> None:
    """On every processor: a partition of places takes others with wider registers."""
    change = np.full(1000, -0.5, np.float32)
    change[[3, 990]] = 1.0, 0.25
    decoded = round_trip(encoding_named("topk:0.01"), change)
    assert np.flatnonzero(decoded).tolist() == list(range(10))


def test_sizes() -> None:
    """Of float32, for a whole block: a quarter, 1/7.5, and under one percent."""
    change, raw = drawn(BLOCK_ELEMENTS), 4 * BLOCK_ELEMENTS
    sizes = {name: len(encoding_named(name).encode(change, 0)) / raw for name in PLAIN}
    assert sizes["bf16"] == 0.5
    assert sizes["int8"] == pytest.approx(0.252, abs=1e-3)
    assert sizes["int4"] == pytest.approx(1 / 7.53, abs=1e-3)
    assert sizes["topk:0.01"] < 0.0078
    for name in PLAIN:
        assert len(encoding_named(f"{name}+zstd").encode(change, 0)) <= 1 + raw * sizes[name]


def test_uniform_draws() -> None:
    draws = uniform(5, 100_001)
    assert (draws.dtype, draws.shape) == (np.float32, (100_001,))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(float(draws.mean()) - 0.5) < 0.005
    # These bits are what updates are rounded by: another numpy must draw the same.
    found = (uniform(5, 4) * 2**24).astype(int).tolist()
    assert found == [3472652, 12310214, 882922, 9907292]


@pytest.mark.parametrize(
    "name",
    ["", "int3", "fp32+", "fp32+zstd+zstd", "topk", "topk:0", "topk:1.5", "topk:nan", "topk:-0.1",
     "topk:0.1:fp32", "topk:0.1:int4", "bf16:int8", "topk:" + "9" * 100, "topk:1e-", "zstd",
     "fp32" + 5000 * "+zstd"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UpdateError, match="known: fp32, bf16, int8, int4, topk:FRACTION"):
        encoding_named(name)


# Hostile payloads.


def hostile(encoding: Encoding, payload: bytes, count: int) -> None:
    """A refusal, or values of the right shape: never another error, and never more memory."""
    try:
        decoded = encoding.decode(memoryview(payload), count)
    except UpdateError:
        return
    assert (decoded.dtype, decoded.shape) == (np.float32, (count,))


@encodings
@given(payload=st.binary(max_size=200), count=st.integers(1, 300))
@example(payload=b"", count=1)
@example(payload=b"\xff\xff\xff\xff", count=1)
@example(payload=b"\x01" + b"\x28\xb5\x2f\xfd" + b"\xff" * 20, count=10)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_or_decoded(encoding: Encoding, payload: bytes, count: int) -> None:
    hostile(encoding, payload, count)


@encodings
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_payload_that_was_changed_is_refused_or_decoded(
    encoding: Encoding, data: st.DataObject
) -> None:
    """Cut, lengthened, and with bits turned over: sizes, counts, places and scales go wrong."""
    count = data.draw(st.integers(1, 300))
    payload = bytearray(encoding.encode(drawn(count, data.draw(st.integers(0, 9))), 1))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(payload) - 1)) if payload else 0
        payload[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
    end = data.draw(st.integers(0, len(payload)))
    hostile(encoding, bytes(payload[:end]) + data.draw(st.binary(max_size=3)), count)


def test_a_decompression_bomb_is_refused_by_what_it_says() -> None:
    encoding = encoding_named("int8+zstd")
    bomb = zstd.compress(bytes(2**28))
    assert len(bomb) < 2**14
    with pytest.raises(UpdateError, match="holds 268435456 bytes; it may hold"):
        encoding.decode(memoryview(b"\x01" + bomb), 1000)
    silent = zstd.compress(bytes(2**20), options={zstd.CompressionParameter.content_size_flag: 0})
    with pytest.raises(UpdateError, match="it may hold"):
        encoding.decode(memoryview(b"\x01" + silent), 1000)


@pytest.mark.parametrize(
    ("scale", "fault"), [(0x7FC0, "not finite"), (0x7F80, "not finite"), (0x7F7F, "not finite")]
)
def test_a_scale_that_is_nan_or_makes_infinity_is_refused(scale: int, fault: str) -> None:
    """Where a block is read, whatever its encoding."""
    layout = Layout((TensorSpec("w", (10,), "float32", Role.TRAINABLE),))
    (block,) = blocks_of(layout)
    payload = np.array([scale], "<u2").tobytes() + bytes([127] * 10)
    with pytest.raises(UpdateError, match=fault):
        decode_block(block, memoryview(payload), INT8)


def test_a_negative_scale_only_turns_signs() -> None:
    payload = np.array([0xBF80], "<u2").tobytes() + bytes([1, 255])
    assert INT8.decode(memoryview(payload), 2).tolist() == [-1.0, 1.0]


# Whole updates, and error feedback.

LAYOUT = Layout(
    (
        TensorSpec("a", (BLOCK_ELEMENTS + 10,), "float32", Role.TRAINABLE),
        TensorSpec("b", (), "float32", Role.TRAINABLE),
        TensorSpec("empty", (0, 3), "float32", Role.TRAINABLE),
        TensorSpec("norm.mean", (4,), "float32", Role.AVERAGED_BUFFER),
        TensorSpec("norm.count", (), "int64", Role.AVERAGED_BUFFER),
    )
)


class Kept:
    """A `Feedback` in memory."""

    def __init__(self, count: int) -> None:
        self.old = np.zeros(count, np.float32)
        self.new = np.zeros(count, np.float32)

    def before(self, block):
        return self.old[block.place]

    def keep(self, block, residual):
        self.new[block.place] = residual


@encodings
def test_an_update_is_what_was_sent_plus_what_was_kept(encoding: Encoding) -> None:
    """Nothing is lost: change + before = sent + kept, up to the rounding of one float32 sum."""
    base = Weights(drawn(LAYOUT.float_count, 1, 1.0), np.array([3]))
    change = drawn(LAYOUT.float_count, 2)
    trained = Weights(base.floats + change, np.array([5]))
    change = trained.floats - base.floats
    kept = Kept(LAYOUT.trainable_count)
    kept.old[:] = drawn(LAYOUT.trainable_count, 3)
    encoder = UpdateEncoder(base, trained, LAYOUT, encoding, 9, kept)
    frames = list(encoder.frames())
    sent = np.empty(LAYOUT.float_count, np.float32)
    for block, one in zip(blocks_of(LAYOUT), frames, strict=True):
        assert len(one) - 8 <= maximum_payload_bytes(block, encoding)
        if block.section != "integers":
            sent[block.place] = decode_block(block, memoryview(one)[8:], encoding)
    count = LAYOUT.trainable_count
    np.testing.assert_array_equal(sent[count:], change[count:])
    intended = change[:count] + kept.old
    np.testing.assert_allclose(sent[:count] + kept.new, intended, rtol=1e-6, atol=1e-8)
    lost = np.linalg.norm(kept.new.astype(float)) / np.linalg.norm(intended.astype(float))
    assert encoder.relative_error == pytest.approx(lost, abs=1e-9)


def test_values_that_are_not_finite_or_too_large_are_not_sent() -> None:
    base = Weights(np.zeros(LAYOUT.float_count, np.float32), np.array([3]))
    for value, name, fault in (
        (np.nan, "fp32", "not finite"),
        (np.inf, "int8", "not finite"),
        (3.4e38, "int4", "too large for the encoding int4"),
    ):
        floats = base.floats.copy()
        floats[:1000] = value
        frames = UpdateEncoder(base, Weights(floats, np.array([3])), LAYOUT, encoding_named(name))
        with pytest.raises(UpdateError, match=fault):
            list(frames.frames())


class Sign:
    """The textbook's sign encoding: one bit a value, and the mean size of all."""

    name = "sign"

    def encode(self, change, seed):
        return np.float32(np.abs(change).mean()).tobytes() + np.packbits(change >= 0).tobytes()

    def decode(self, payload, count):
        (size,) = np.frombuffer(payload[:4], np.float32)
        bits = np.unpackbits(np.frombuffer(payload[4:], np.uint8))[:count]
        return np.where(bits, size, -size).astype(np.float32)


def descend(encoding, gradients, steps: int, feedback: bool, rate: float = 0.05) -> float:
    """Gradient descent with encoded steps; the distance from the minimum at 0 that it ends in."""
    point = np.ones(2)
    residual = np.zeros_like(point)
    for step in range(steps):
        change = (-rate * gradients(point, step) + residual * feedback).astype(np.float32)
        sent = encoding.decode(memoryview(encoding.encode(change, step)), change.size)
        residual = change - sent
        point = point + sent
    return float(np.abs(point).max())


A = np.array([[2.0, 1.0], [1.0, 3.0]])


def opposed(point: np.ndarray, step: int) -> np.ndarray:
    """Karimireddy et al., 2019, counter-example 3: every gradient has the signs +- or -+, so that
    steps by signs alone never change the sum of the coordinates."""
    one = np.array([1.5, -0.5] if step % 2 else [-0.5, 1.5])
    return one * float(one @ point)


def lopsided(point: np.ndarray, step: int) -> np.ndarray:
    """The second coordinate always pulls less than the noise of the first."""
    noise = 3.0 if step % 2 else -3.0
    return np.array([point[0] + noise, point[1]])


@pytest.mark.parametrize(
    ("encoding", "gradients"),
    [(encoding_named("topk:0.5"), lopsided), (Sign(), opposed)],
    ids=["topk", "sign"],
)
def test_without_feedback_it_fails_and_with_it_it_converges(encoding, gradients) -> None:
    """Top-k never sends what pulls less; signs never leave the line that they began on."""
    alone = descend(encoding, gradients, 3000, feedback=False)
    fed = descend(encoding, gradients, 3000, feedback=True)
    assert alone > 0.5
    assert fed < 0.35


@pytest.mark.parametrize("name", NAMES)
def test_with_feedback_every_encoding_reaches_the_minimum(name: str) -> None:
    far = descend(encoding_named(name), lambda x, _: A @ x, 3000, feedback=True)
    assert far < 1e-2
