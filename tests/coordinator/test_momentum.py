"""Server momentum: what it computes, against numpy's own words, and what no bit depends on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.aggregation.momentum import Momentum
from coordinator.aggregation.rule import fold
from coordinator.aggregation.server_optimizer import (
    ServerState,
    ServerStep,
    first_state,
    state_layout,
)
from coordinator.aggregation.server_optimizers import SERVER_OPTIMIZERS
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.weighted_mean import WeightedMean
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec, Weights
from tests.coordinator.stored_updates import SMALL, changes, stored, updates

TRAINABLE, BUFFERS = slice(0, 6), slice(6, 8)
both_forms = pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
drawn = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def advanced(
    before: ServerState, base: Weights, contributions: list, layout: Layout, threads: int = 1
) -> tuple[Weights, ServerState]:
    """The weights and the state after one round."""
    step = ServerStep(before)
    return fold(WeightedMean(), base, contributions, layout, threads, step), step.after


def weights(floats: np.ndarray) -> Weights:
    return Weights(floats.astype(np.float32), np.zeros(1, np.int64))


def with_state(optimizer: Momentum, values: np.ndarray) -> ServerState:
    kind = state_layout(optimizer, SMALL)
    return ServerState(optimizer, kind, values.astype(np.float32).reshape(1, -1))


def test_every_server_optimizer_of_the_table_is_tested_here() -> None:
    assert set(SERVER_OPTIMIZERS) == {"momentum"}


@both_forms
@drawn
@given(updates=updates, momentum=changes, base=changes)
def test_without_momentum_and_with_a_learning_rate_of_1_it_is_the_mean_bit_for_bit(
    nesterov, tmp_path, updates, momentum, base
):
    """Whatever the state: signs of zero, subnormal values and overflows too."""
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    before = with_state(Momentum(1.0, 0.0, nesterov), momentum[TRAINABLE])
    result, _ = advanced(before, weights(base), contributions, SMALL)
    mean = fold(WeightedMean(), weights(base), contributions, SMALL, 1)
    assert result.floats.tobytes() == mean.floats.tobytes()
    assert result.integers.tobytes() == mean.integers.tobytes()


@both_forms
@drawn
@given(
    updates=updates, momentum=changes, order=st.randoms(use_true_random=False),
    threads=st.integers(2, 5), factor=st.floats(0, 0.999), rate=st.floats(1e-3, 10),
)  # fmt: skip
def test_any_order_and_any_number_of_threads_give_the_same_bits(
    nesterov, tmp_path, updates, momentum, order, threads, factor, rate
):
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    before = with_state(Momentum(rate, factor, nesterov), momentum[TRAINABLE])
    base = weights(np.linspace(-2, 2, 8))
    shuffled = order.sample(contributions, len(contributions))
    first, after = advanced(before, base, contributions, SMALL)
    second, again = advanced(before, base, shuffled, SMALL, threads)
    assert first.floats.tobytes() == second.floats.tobytes()
    assert after.values.tobytes() == again.values.tobytes()
    assert (after.values.dtype, after.values.shape) == (np.float32, (1, 6))


@both_forms
def test_many_blocks_are_shared_out_without_changing_a_bit(nesterov, tmp_path: Path):
    layout = Layout((TensorSpec("w", (2 * BLOCK_ELEMENTS + 7,), "float32", Role.TRAINABLE),))
    draw = np.random.default_rng(1)
    base, change, momentum = draw.standard_normal((3, layout.float_count)).astype(np.float32)
    contributions = [stored(tmp_path, layout, change, 0, 3)]
    optimizer = Momentum(0.7, 0.9, nesterov)
    before = ServerState(optimizer, state_layout(optimizer, layout), momentum[None])
    start = Weights(base, np.zeros(0, np.int64))
    alone, after = advanced(before, start, contributions, layout)
    together, again = advanced(before, start, contributions, layout, 4)
    assert alone.floats.tobytes() == together.floats.tobytes()
    assert after.values.tobytes() == again.values.tobytes()
    # The step comes of the momentum before it is rounded to what is stored.
    exact = 0.9 * momentum.astype(np.float64) + change
    step = 0.9 * exact + change if nesterov else exact
    np.testing.assert_array_equal(after.values[0], exact.astype(np.float32))
    np.testing.assert_array_equal(alone.floats, (base + 0.7 * step).astype(np.float32))


@both_forms
def test_some_rounds_are_the_closed_form(nesterov, tmp_path: Path):
    """m is the sum of momentum^k times the change k rounds ago; the model, the sum of the steps."""
    factor, rate, rounds = 0.9, 0.5, 6
    draw = np.random.default_rng(2)
    means = draw.normal(0, 0.1, (rounds, 8)).astype(np.float32).astype(np.float64)
    start = draw.normal(0, 1, 8).astype(np.float32)
    model, state = weights(start), first_state(Momentum(rate, factor, nesterov), SMALL)
    for number, mean in enumerate(means):
        one = stored(tmp_path, SMALL, mean.astype(np.float32), number, 7)
        model, state = advanced(state, model, [one], SMALL)
    powers = [sum(factor ** (at - k) * means[k] for k in range(at + 1)) for at in range(rounds)]
    steps = [factor * m + c if nesterov else m for m, c in zip(powers, means, strict=True)]
    expected = start + rate * np.sum(steps, axis=0)
    np.testing.assert_allclose(state.values[0], powers[-1][TRAINABLE], rtol=0, atol=1e-7)
    np.testing.assert_allclose(model.floats[TRAINABLE], expected[TRAINABLE], rtol=0, atol=1e-6)
    # Buffers are averaged, as without a server optimizer, and counters take the largest.
    plain = start + np.sum(means, axis=0)
    np.testing.assert_allclose(model.floats[BUFFERS], plain[BUFFERS], rtol=0, atol=1e-6)
    assert model.integers.tolist() == [rounds - 1]


@both_forms
@drawn
@given(updates=updates, momentum=changes, factor=st.floats(0, 0.999), rate=st.floats(1e-3, 1e3))
def test_weights_and_state_lie_between_those_of_the_updates_alone(
    nesterov, tmp_path, updates, momentum, factor, rate
):
    """So updates that are sound one by one are sound together, as without it."""
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    before = with_state(Momentum(rate, factor, nesterov), momentum[TRAINABLE])
    base = weights(np.linspace(-2, 2, 8))
    alone = [advanced(before, base, [one], SMALL) for one in contributions]
    together, after = advanced(before, base, contributions, SMALL)
    for found, each in (
        (together.floats, np.stack([made.floats for made, _ in alone])),
        (after.values[0], np.stack([state.values[0] for _, state in alone])),
    ):
        assert (each.min(axis=0) <= found).all()
        assert (found <= each.max(axis=0)).all()


def test_a_state_that_overflows_is_refused_and_not_hidden(tmp_path: Path):
    """Also where a small learning rate keeps the weights finite."""
    largest = np.finfo(np.float32).max
    before = with_state(Momentum(1e-30, 0.9, False), np.full(6, largest))
    one = stored(tmp_path, SMALL, np.full(8, largest, np.float32), 0, 1)
    made, after = advanced(before, weights(np.zeros(8)), [one], SMALL)
    assert fault_of(made, SMALL) == ""
    assert fault_of(after.weights, after.layout) == (
        "the new weights are not finite in tensor 'momentum.layer.weight'"
    )


def test_a_state_is_named_by_its_parameters_and_in_their_order() -> None:
    layout = Layout(
        tuple(TensorSpec(name, (2,), "float32", Role.TRAINABLE) for name in ("b", "a.b", "a"))
    )
    found = state_layout(Momentum(1.0, 0.9, False), layout)
    assert [one.name for one in found.trainable] == ["momentum.a", "momentum.a.b", "momentum.b"]
    assert [one.name for one in layout.trainable] == ["a", "a.b", "b"]
