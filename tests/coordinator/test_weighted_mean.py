"""The fold is a function of the set of updates: no order, interleaving or thread changes a bit."""

import hashlib
import io
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.aggregation.order import Contribution, canonical
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.weighted_mean import fold, fold_block, weighted_sum
from coordinator.services.upload import Upload
from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec, Weights
from headwater.updates import (
    ENCODINGS,
    StoredUpdate,
    blocks_of,
    encode_update,
    frame,
    verified_frames,
)

EXACT = ENCODINGS["fp32"]
SMALL = Layout(
    (
        TensorSpec("layer.weight", (6,), "float32", Role.TRAINABLE),
        TensorSpec("norm.running_var", (2,), "float32", Role.AVERAGED_BUFFER, positive=True),
        TensorSpec("norm.num_batches_tracked", (), "int64", Role.AVERAGED_BUFFER),
    )
)


def stored(folder: Path, layout: Layout, change: np.ndarray, counter: int, examples: int):
    """An update on disk whose change is exactly these float32 values."""
    parts = []
    for block in blocks_of(layout):
        values = np.array([counter], "<i8") if block.section == "integers" else change[block.place]
        parts.append(frame(values.tobytes()))
    content = b"".join(parts)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / digest
    path.write_bytes(content)
    return Contribution(digest, examples, StoredUpdate(path, layout, EXACT))


def float32s() -> st.SearchStrategy[np.float32]:
    """Finite values over the whole exponent range of float32, subnormal ones too."""
    sign, last = st.sampled_from([-1.0, 1.0]), 2.0**-23
    normal = st.builds(
        lambda s, e, m: np.float32(s * m * last * 2.0**e),
        sign, st.integers(-126, 127), st.integers(2**23, 2**24 - 1),
    )  # fmt: skip
    subnormal = st.builds(
        lambda s, m: np.float32(s * m * 2.0**-149), sign, st.integers(0, 2**23 - 1)
    )
    return normal | subnormal


changes = st.lists(float32s(), min_size=8, max_size=8).map(lambda v: np.array(v, np.float32))
free = st.lists(st.tuples(changes, st.integers(1, 10**6)), min_size=3, max_size=6)
cancelling = st.builds(
    lambda large, small, n, m: [(large, n), (-large, n), (small, m)],
    changes, changes, st.integers(1, 1000), st.integers(1, 1000),
)  # fmt: skip
updates = free | cancelling


def unsorted_fold(base: Weights, given_order: Sequence[Contribution], layout: Layout) -> bytes:
    """What the fold would give without the canonical sort."""
    result = Weights(np.empty_like(base.floats), base.integers.copy())
    total = sum(one.examples for one in given_order)
    for index, block in enumerate(blocks_of(layout)):
        fold_block(index, block, base, given_order, total, result)
    return result.floats.tobytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(updates=updates, order=st.randoms(use_true_random=False), threads=st.integers(1, 5))
def test_any_order_and_any_number_of_threads_give_the_same_bits(tmp_path, updates, order, threads):
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    shuffled = order.sample(contributions, len(contributions))
    with np.errstate(over="ignore"):
        first = fold(base, contributions, SMALL, 1)
        second = fold(base, shuffled, SMALL, threads)
    assert first.floats.tobytes() == second.floats.tobytes()
    assert first.integers.tobytes() == second.integers.tobytes()
    sums = [weighted_sum(0, 6, canonical(one)) for one in (contributions, shuffled)]
    assert sums[0].tobytes() == sums[1].tobytes()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(updates=updates, order=st.randoms(use_true_random=False))
def test_any_interleaving_of_arriving_blocks_gives_the_same_bits(tmp_path, updates, order):
    """Updates that arrive at once, block by block in any order between them, fold to the same."""
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    one_by_one = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    with ExitStack() as stack:
        arriving = []
        for number, one in enumerate(one_by_one):
            upload = Upload(tmp_path / f"part-{number}", SMALL, EXACT, one.digest)
            stack.callback(upload.discard)
            content = (tmp_path / one.digest).read_bytes()
            arriving.append((upload, verified_frames(io.BytesIO(content), blocks_of(SMALL))))
        turns = [at for at in range(len(arriving)) for _ in blocks_of(SMALL)]
        for at in order.sample(turns, len(turns)):
            upload, payloads = arriving[at]
            payload = next(payloads)
            upload.append(zlib.crc32(payload), payload)
        together = []
        for (upload, _), one in zip(arriving, one_by_one, strict=True):
            upload.finish()
            update = StoredUpdate(upload.path, SMALL, EXACT)
            together.append(Contribution(one.digest, one.examples, update))
        with np.errstate(over="ignore"):
            assert (
                fold(base, together, SMALL, 2).floats.tobytes()
                == fold(base, one_by_one, SMALL, 1).floats.tobytes()
            )


def test_without_the_canonical_sort_the_order_shows(tmp_path):
    """The property above can fail: on the same kind of values, unsorted folds differ."""
    generator = np.random.default_rng(0)
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    differing_sums = differing_weights = 0
    for _ in range(50):
        big = np.float32(2.0) ** generator.integers(40, 60, 8).astype(np.float32)
        changes = [big, -big, generator.standard_normal(8).astype(np.float32)]
        contributions = [stored(tmp_path, SMALL, one, 0, 1) for one in changes]
        forward, backward = contributions, [contributions[i] for i in (2, 0, 1)]
        sums = [weighted_sum(0, 6, one).tobytes() for one in (forward, backward)]
        differing_sums += sums[0] != sums[1]
        differing_weights += unsorted_fold(base, forward, SMALL) != unsorted_fold(
            base, backward, SMALL
        )
        assert fold(base, forward, SMALL, 1).floats.tobytes() == (
            fold(base, backward, SMALL, 1).floats.tobytes()
        )
    assert differing_sums > 25
    assert differing_weights > 25


def test_blocks_of_a_large_layout_are_shared_out_without_changing_a_bit(tmp_path):
    layout = Layout((TensorSpec("w", (3 * BLOCK_ELEMENTS + 7,), "float32", Role.TRAINABLE),))
    generator = np.random.default_rng(1)
    base = Weights(generator.standard_normal(layout.float_count).astype(np.float32),
                   np.zeros(0, np.int64))  # fmt: skip
    contributions = []
    for seed in range(3):
        change = np.random.default_rng(seed).standard_normal(layout.float_count)
        change *= 2.0 ** generator.integers(-60, 60, layout.float_count)
        contributions.append(stored(tmp_path, layout, change.astype(np.float32), 0, seed + 1))
    alone = fold(base, contributions, layout, 1)
    together = fold(base, contributions[::-1], layout, 4)
    assert alone.floats.tobytes() == together.floats.tobytes()


def test_the_mean_is_weighted_by_examples_and_counters_take_the_maximum(tmp_path):
    base = Weights(np.ones(8, np.float32), np.array([5], np.int64))
    contributions = [
        stored(tmp_path, SMALL, np.full(8, 1.0, np.float32), 7, 30),
        stored(tmp_path, SMALL, np.full(8, 5.0, np.float32), 9, 10),
    ]
    result = fold(base, contributions, SMALL, 1)
    np.testing.assert_array_equal(result.floats, np.full(8, 3.0, np.float32))
    assert result.integers.tolist() == [9]


def test_nothing_to_fold_is_an_error(tmp_path):
    base = Weights(np.ones(8, np.float32), np.array([5], np.int64))
    with pytest.raises(UpdateError, match="no update with examples"):
        fold(base, [], SMALL, 1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.inf, "not finite in tensor 'layer.weight'"),
        (7, np.nan, "not finite in tensor 'norm.running_var'"),
        (6, 0.0, "variance 'norm.running_var' is not positive"),
        (6, -1.0, "variance 'norm.running_var' is not positive"),
    ],
)
def test_unsound_weights_are_named(place, value, message):
    floats = np.ones(8, np.float32)
    floats[place] = value
    assert message in fault_of(Weights(floats, np.zeros(1, np.int64)), SMALL)


def test_sound_weights_have_no_fault():
    floats = np.array([-1, 0, 1, -2, 0, 2, 0.5, 0.5], np.float32)
    assert fault_of(Weights(floats, np.zeros(1, np.int64)), SMALL) == ""


def test_an_overflow_of_the_fold_is_refused_and_not_hidden(tmp_path):
    largest = np.finfo(np.float32).max
    base = Weights(np.full(8, largest, np.float32), np.zeros(1, np.int64))
    change = stored(tmp_path, SMALL, np.full(8, largest, np.float32), 0, 1)
    assert "not finite" in fault_of(fold(base, [change], SMALL, 1), SMALL)


def test_encoding_an_update_and_folding_it_alone_gives_the_trained_weights(tmp_path):
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    trained = Weights(np.linspace(0.1, 3, 8, dtype=np.float32), np.array([4], np.int64))
    content = b"".join(encode_update(base, trained, SMALL, EXACT))
    path = tmp_path / "update"
    path.write_bytes(content)
    one = Contribution("0" * 64, 17, StoredUpdate(path, SMALL, EXACT))
    result = fold(base, [one], SMALL, 1)
    np.testing.assert_array_equal(result.floats, trained.floats)
    assert result.integers.tolist() == [4]
