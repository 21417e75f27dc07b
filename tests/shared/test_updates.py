"""Updates in blocks and frames: exact, bounded, and refused where they are damaged."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encodings.names import EXACT, encoding_named
from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec, Weights
from headwater.update_encoder import UpdateEncoder
from headwater.updates import (
    FRAME_HEADER,
    Section,
    StoredUpdate,
    blocks_of,
    frame,
    maximum_update_bytes,
    verified_frames,
)

LAYOUT = Layout(
    (
        TensorSpec("w", (BLOCK_ELEMENTS + 3,), "float32", Role.TRAINABLE),
        TensorSpec("mean", (4,), "float32", Role.AVERAGED_BUFFER),
        TensorSpec("count", (2,), "int64", Role.AVERAGED_BUFFER),
    )
)


def weights(seed: int) -> Weights:
    generator = np.random.default_rng(seed)
    floats = generator.standard_normal(LAYOUT.float_count).astype(np.float32)
    return Weights(floats, generator.integers(0, 100, 2))


def encoded(base: Weights, trained: Weights) -> bytes:
    return b"".join(UpdateEncoder(base, trained, LAYOUT, EXACT).frames())


def test_no_block_spans_two_sections():
    sections = [(one.section, one.start, one.count) for one in blocks_of(LAYOUT)]
    assert sections == [
        (Section.TRAINABLE, 0, BLOCK_ELEMENTS),
        (Section.TRAINABLE, BLOCK_ELEMENTS, 3),
        (Section.BUFFERS, BLOCK_ELEMENTS + 3, 4),
        (Section.INTEGERS, 0, 2),
    ]


def test_a_model_without_tensors_has_no_blocks():
    assert blocks_of(Layout(())) == ()


def test_changes_travel_exactly_and_counters_as_they_are(tmp_path):
    base, trained = weights(0), weights(1)
    path = tmp_path / "u"
    path.write_bytes(encoded(base, trained))
    assert path.stat().st_size == maximum_update_bytes(LAYOUT, EXACT)
    stored = StoredUpdate(path, LAYOUT, EXACT)
    changes = np.concatenate([stored.change(index) for index in range(3)])
    np.testing.assert_array_equal(changes, trained.floats - base.floats)
    np.testing.assert_array_equal(stored.integers(3), trained.integers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_with_values_that_are_not_finite_is_never_made(value):
    trained = weights(1)
    trained.floats[BLOCK_ELEMENTS + 1] = value
    with pytest.raises(UpdateError, match="not finite"):
        encoded(weights(0), trained)


def test_a_poisoned_value_is_found_and_placed(tmp_path):
    content = bytearray(encoded(weights(0), weights(1)))
    second = FRAME_HEADER.size + 4 * BLOCK_ELEMENTS
    size, _ = FRAME_HEADER.unpack_from(content, second)
    payload = bytearray(content[second + FRAME_HEADER.size :][:size])
    payload[8:12] = np.array([np.nan], "<f4").tobytes()
    content[second : second + FRAME_HEADER.size + size] = frame(bytes(payload))
    (tmp_path / "u").write_bytes(content)
    stored = StoredUpdate(tmp_path / "u", LAYOUT, EXACT)
    with pytest.raises(UpdateError, match=f"value {BLOCK_ELEMENTS + 2} of the update"):
        stored.change(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "ends before its last block|too many"),
        (lambda c: c[:4], "ends before its last block"),
        (lambda c: b"", "ends before its last block"),
        (lambda c: c + b"x", "1 bytes after its last block"),
        (lambda c: (2**31).to_bytes(4, "little") + c[4:], "which is too many"),
    ],
)
def test_files_that_are_no_such_update_are_refused(tmp_path, change, message):
    (tmp_path / "u").write_bytes(change(encoded(weights(0), weights(1))))
    with pytest.raises(UpdateError, match=message):
        StoredUpdate(tmp_path / "u", LAYOUT, EXACT)


@given(cut=st.integers(0, 200), flip=st.integers(0, 199))
def test_only_whole_undamaged_frames_count_after_a_break(cut, flip):
    payloads = [bytes([number]) * (10 + number) for number in range(8)]
    content = bytearray(b"".join(map(frame, payloads))[:cut])
    if flip < len(content):
        content[flip] ^= 0x40
    found = list(verified_frames(io.BytesIO(content), blocks_of(LAYOUT) * 2))
    assert found == payloads[: len(found)]
    whole = 0
    at = 0
    for payload in payloads:
        at += FRAME_HEADER.size + len(payload)
        whole += at <= cut and at <= (flip if flip < cut else cut)
    assert len(found) == whole


def test_an_unknown_encoding_is_named():
    with pytest.raises(UpdateError, match="unknown update encoding 'int3'; known: fp32"):
        encoding_named("int3")
