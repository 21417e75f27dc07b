"""What every trainer does: one class of tests over both runtimes, and the two held together.

The yardstick for "the same" is the distance that eager float32 torch keeps from eager float64 torch
on the same steps: no two float32 backends can be asked to stay nearer than that.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coordinator.compiler.losses import loss_function
from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.rewrites import PortableFunctions
from edge_client.trainers import Trainer, open_trainer
from headwater.batch import Array, Batch
from headwater.errors import DataError, PlanError
from headwater.layout import Layout, Weights
from headwater.plan import Plan
from tests.zoo import ZOO, batch

PlanOf = Callable[[str], Plan]
BACKENDS = ("onnxruntime", "torch")
FACTOR = 5.0
"""How many yardsticks a backend may be away from float64 after five steps."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def started(plan: Plan, backend: str) -> Trainer:
    trainer = open_trainer(plan, backend, threads=1, device="cpu")  # type: ignore[arg-type]
    trainer.set_weights(plan.initial_weights())
    return trainer


def batches(name: str, count: int) -> list[Batch]:
    """Batches of unequal size, as at the end of an epoch."""
    return [batch(ZOO[name], 6 if step % 2 else 9, step) for step in range(count)]


def trained(plan: Plan, backend: str, steps: list[Batch]) -> Weights:
    trainer = started(plan, backend)
    for seed, examples in enumerate(steps):
        trainer.train_step(examples, {}, seed)
    return trainer.weights()


@cache
def eager(name: str, count: int, dtype: torch.dtype) -> dict[str, Array]:
    """The model's tensors after `count` steps of plain torch autograd and torch.optim."""
    case = ZOO[name]
    model = case.build().to(dtype).train()
    settings, learning_rate = optimizer_from(case.optimizer)
    optimizer = settings.eager(model.parameters(), learning_rate)
    loss = loss_function(case.loss)
    for seed, examples in enumerate(batches(name, count)):
        inputs = [torch.from_numpy(array) for array in examples.inputs]
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        optimizer.zero_grad()
        with PortableFunctions(torch.tensor(seed)):
            result = loss(model(*inputs), *map(torch.from_numpy, examples.targets))
        torch.autograd.backward(result)
        optimizer.step()
    state: dict[str, Array] = {
        name: tensor.detach().numpy() for name, tensor in model.state_dict().items()
    }
    return state


def distances(layout: Layout, found: Weights, exact: dict[str, Array]) -> dict[str, float]:
    """The largest difference in each floating tensor."""
    named = layout.unflatten(found)
    return {
        name: float(np.abs(array.astype(np.float64) - exact[name].astype(np.float64)).max())
        for name, array in named.items()
        if array.dtype == np.float32
    }


@pytest.mark.parametrize("name", ZOO)
def test_five_steps_stay_as_near_to_float64_as_torch_itself(
    plan_of: PlanOf, backend: str, name: str
) -> None:
    plan = plan_of(name)
    exact = eager(name, 5, torch.float64)
    yardstick = distances(plan.layout, plan.layout.flatten(eager(name, 5, torch.float32)), exact)
    found = trained(plan, backend, batches(name, 5))

    allowed = {
        tensor: FACTOR * max(distance, 1e-7 * float(np.abs(exact[tensor]).max()), 1e-9)
        for tensor, distance in yardstick.items()
    }
    worst = {
        tensor: f"{distance:.2e}, allowed {allowed[tensor]:.2e}"
        for tensor, distance in distances(plan.layout, found, exact).items()
        if distance > allowed[tensor]
    }
    assert not worst
    for tensor in plan.layout.integer_buffers:
        assert plan.layout.unflatten(found)[tensor.name] == exact[tensor.name]


def test_both_backends_stay_together_for_an_epoch_on_a_smooth_network(plan_of: PlanOf) -> None:
    plan = plan_of("smooth")
    epoch = batches("smooth", 60)
    one, other = (trained(plan, backend, epoch).floats for backend in BACKENDS)
    moved = np.abs(one - plan.initial_weights().floats).max()
    assert moved > 0.05
    assert np.abs(one - other).max() < 1e-4 * moved


def test_both_backends_drop_the_same_activations(plan_of: PlanOf) -> None:
    plan = plan_of("dropout")
    steps = batches("dropout", 4)
    one, other = (started(plan, backend) for backend in BACKENDS)
    for seed, examples in enumerate(steps):
        losses = [trainer.train_step(examples, {}, seed)["loss"] for trainer in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_seed_decides_the_dropout(plan_of: PlanOf, backend: str) -> None:
    plan, examples = plan_of("dropout"), batch(ZOO["dropout"], 6, 0)

    def loss(seed: int) -> float:
        return started(plan, backend).train_step(examples, {}, seed)["loss"]

    assert loss(7) == loss(7)
    assert loss(7) != loss(8)
    assert loss(2**40 + 7) != loss(7)


def test_the_same_steps_give_the_same_bits(plan_of: PlanOf, backend: str) -> None:
    plan, steps = plan_of("resnet"), batches("resnet", 3)
    first, second = (trained(plan, backend, steps) for _ in range(2))
    np.testing.assert_array_equal(first.floats, second.floats)
    np.testing.assert_array_equal(first.integers, second.integers)


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_weights_make_a_round_trip(plan_of: PlanOf, backend: str, name: str) -> None:
    plan = plan_of(name)
    draw = np.random.default_rng(0)
    given = Weights(
        draw.random(plan.layout.float_count, np.float32),
        draw.integers(0, 2**40, plan.layout.integer_count),
    )
    trainer = started(plan, backend)
    trainer.set_weights(given)
    np.testing.assert_array_equal(trainer.weights().floats, given.floats)
    np.testing.assert_array_equal(trainer.weights().integers, given.integers)


def test_weights_of_another_plan_are_refused(plan_of: PlanOf, backend: str) -> None:
    trainer = started(plan_of("mlp"), backend)
    with pytest.raises(PlanError, match="they belong to another plan"):
        trainer.set_weights(plan_of("lenet").initial_weights())


@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_optimizer_state_is_kept_until_it_is_reset(
    plan_of: PlanOf, backend: str, name: str
) -> None:
    plan, (first, second) = plan_of(name), batches(name, 2)

    def after(between: Callable[[Trainer], None]) -> Array:
        trainer = started(plan, backend)
        trainer.train_step(first, {}, 0)
        trainer.set_weights(plan.initial_weights())
        between(trainer)
        trainer.train_step(second, {}, 1)
        return trainer.weights().floats

    def moved(trainer: Trainer) -> None:
        state = trainer.optimizer_state()
        trainer.reset_optimizer()
        trainer.set_optimizer_state(state)

    fresh = started(plan, backend)
    fresh.train_step(second, {}, 1)

    kept = after(lambda trainer: None)
    np.testing.assert_array_equal(after(moved), kept)
    np.testing.assert_array_equal(
        after(lambda trainer: trainer.reset_optimizer()), fresh.weights().floats
    )
    assert not np.array_equal(kept, fresh.weights().floats)


def test_optimizer_state_moves_between_the_backends(plan_of: PlanOf) -> None:
    plan, (first, second) = plan_of("transformer"), batches("transformer", 2)
    results = []
    for one, other in (BACKENDS, BACKENDS[::-1]):
        before, after = started(plan, one), started(plan, other)
        before.train_step(first, {}, 0)
        after.set_weights(before.weights())
        after.set_optimizer_state(before.optimizer_state())
        results.append(after.train_step(second, {}, 1)["loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_optimizer_state_of_another_plan_is_refused(plan_of: PlanOf, backend: str) -> None:
    state = started(plan_of("transformer"), backend).optimizer_state()
    with pytest.raises(PlanError, match="reset the optimizer"):
        started(plan_of("lenet"), backend).set_optimizer_state(state)


def test_the_learning_rate_is_an_input(plan_of: PlanOf, backend: str) -> None:
    plan, examples = plan_of("mlp"), batch(ZOO["mlp"], 4, 0)

    def step(**hyperparameters: float) -> NDArray[np.float32]:
        trainer = started(plan, backend)
        trainer.train_step(examples, hyperparameters, 0)
        return trainer.weights().floats - plan.initial_weights().floats

    default = plan.manifest.hyperparameters["learning_rate"]
    np.testing.assert_array_equal(step(), step(learning_rate=default))
    np.testing.assert_allclose(step(learning_rate=2 * default), 2 * step(), rtol=1e-3, atol=1e-6)
    assert not step(learning_rate=0.0).any()


@pytest.mark.parametrize("name", ZOO)
def test_evaluations_agree_and_leave_the_weights_alone(plan_of: PlanOf, name: str) -> None:
    plan, examples = plan_of(name), batch(ZOO[name], 8, 3)
    found = []
    for backend in BACKENDS:
        trainer = started(plan, backend)
        trainer.train_step(batch(ZOO[name], 8, 1), {}, 0)
        before = trainer.weights()
        found.append(trainer.evaluate_step(examples))
        np.testing.assert_array_equal(trainer.weights().floats, before.floats)
        assert set(found[-1]) == {"loss", *plan.manifest.metrics}
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "resnet"])
def test_a_batch_of_one_trains(plan_of: PlanOf, name: str) -> None:
    plan, examples = plan_of(name), batch(ZOO[name], 1, 0)
    losses = [started(plan, backend).train_step(examples, {}, 0)["loss"] for backend in BACKENDS]
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def _without_a_dimension(examples: Batch) -> Batch:
    return Batch((examples.inputs[0][..., 0],), examples.targets)


def _of_unequal_sizes(examples: Batch) -> Batch:
    return Batch(examples.inputs, (examples.targets[0][1:],))


def _of_another_dtype(examples: Batch) -> Batch:
    return Batch((examples.inputs[0].astype(np.float64),), examples.targets)


def _empty(examples: Batch) -> Batch:
    return Batch((examples.inputs[0][:0],), (examples.targets[0][:0],))


def _without_targets(examples: Batch) -> Batch:
    return Batch(examples.inputs, ())


def _of_a_label_too_high(examples: Batch) -> Batch:
    return Batch(examples.inputs, (np.full_like(examples.targets[0], 5),))


def _of_a_negative_label(examples: Batch) -> Batch:
    return Batch(examples.inputs, (np.full_like(examples.targets[0], -1),))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_without_a_dimension, r"'image' of a batch has shape \(3, 3, 16\); the plan takes"),
        (_of_unequal_sizes, r"'label' of a batch has shape \(2,\)"),
        (_of_another_dtype, "'image' of a batch has dtype float64; the plan takes float32"),
        (_empty, "at least one example"),
        (_without_targets, "a batch has 0 targets; the plan takes 1: label"),
        (_of_a_label_too_high, "'label' of a batch has the value 5; the plan takes 0 to 4"),
        (_of_a_negative_label, "'label' of a batch has the value -1; the plan takes 0 to 4"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    plan_of: PlanOf, backend: str, spoil: Callable[[Batch], Batch], reason: str
) -> None:
    trainer = started(plan_of("lenet"), backend)
    wrong = spoil(batch(ZOO["lenet"], 3, 0))
    with pytest.raises(DataError, match=reason):
        trainer.train_step(wrong, {}, 0)
    with pytest.raises(DataError, match=reason):
        trainer.evaluate_step(wrong)


def test_nothing_is_printed(
    plan_of: PlanOf, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trained(plan_of("lenet"), backend, batches("lenet", 2))
    assert capfd.readouterr() == ("", "")
