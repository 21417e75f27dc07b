"""Five training steps on either runtime, held against eager torch in float32 and float64.

The yardstick for "the same" is the distance that eager float32 torch keeps from eager float64 torch
on the same steps: no two float32 backends can be asked to stay nearer than that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from coordinator.compiler.losses import loss_function
from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.rewrites import PortableFunctions
from edge_client.trainers import Trainer, open_trainer
from headwater.batch import Array, Batch
from headwater.layout import Layout, Weights
from headwater.plan import Plan
from tests.zoo import Case, batch

BACKENDS = ("onnxruntime", "torch")
FACTOR = 10.0
"""How many yardsticks a backend may be away from float64."""
COMPARED_AFTER = (1, 5)
"""More steps prove nothing on networks with kinks, which are chaotic in any float32."""

_LEAST = 3e-7
"""Of a tensor's largest value: some units in the last place of float32."""


def batches(case: Case, count: int, draw: int = 0) -> list[Batch]:
    """Batches of unequal size, as at the end of an epoch; other ones for each `draw`."""
    return [batch(case, 6 if step % 2 else 9, 100 * draw + step) for step in range(count)]


def started(plan: Plan, backend: str) -> Trainer:
    """A trainer with the plan's initial weights."""
    trainer = open_trainer(plan, backend, threads=1, device="cpu")  # type: ignore[arg-type]
    trainer.set_weights(plan.initial_weights())
    return trainer


def eager(case: Case, steps: Sequence[Batch], dtype: torch.dtype) -> dict[str, Array]:
    """The model's tensors after steps of plain torch autograd and torch.optim."""
    model = case.build().to(dtype).train()
    settings, learning_rate = optimizer_from(case.optimizer)
    optimizer = settings.eager([p for p in model.parameters() if p.requires_grad], learning_rate)
    loss = loss_function(case.loss)
    for seed, examples in enumerate(steps):
        inputs = [_as(dtype, array) for array in examples.inputs]
        targets = [_as(dtype, array) for array in examples.targets]
        optimizer.zero_grad()
        with PortableFunctions(torch.tensor(seed), only_random=True):
            result = loss(model(*inputs), *targets)
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


def distance_in_yardsticks(
    plan: Plan, case: Case, backend: str, count: int, draw: int = 0
) -> dict[str, float]:
    """How far each tensor lies from float64 after some steps; infinity where it is not finite."""
    steps = batches(case, count, draw)
    exact = eager(case, steps, torch.float64)
    single = plan.layout.flatten(eager(case, steps, torch.float32))
    yardsticks = distances(plan.layout, single, exact)
    trainer = started(plan, backend)
    for seed, examples in enumerate(steps):
        trainer.train_step(examples, {}, seed)
    found = distances(plan.layout, trainer.weights(), exact)
    return {
        name: distance / _yardstick(yardsticks[name], exact[name])
        if np.isfinite(distance)
        else float("inf")
        for name, distance in found.items()
    }


def assert_trains_like_torch(plan: Plan, case: Case, backend: str) -> None:
    """Parameters and buffers after 1 and after 5 steps lie as near to float64 as torch's do."""
    for count in COMPARED_AFTER:
        found = distance_in_yardsticks(plan, case, backend, count)
        wrong = {name: f"{one:.1f}" for name, one in found.items() if not one <= FACTOR}
        assert not wrong, f"{backend} after {count} steps, in yardsticks: {wrong}"


def _yardstick(distance: float, exact: Array) -> float:
    largest = float(np.abs(np.asarray(exact, np.float64)).max(initial=0.0))
    return max(distance, _LEAST * largest, 1e-9)


def _as(dtype: torch.dtype, array: Array) -> Tensor:
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
