from typing import Any

import numpy as np
import pytest
import torch

from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.optimizers.rmsprop import RmsProp
from headwater.batch import Array
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.plan import Plan
from tests.plans import compile_case, opened
from tests.zoo import ZOO

SETTINGS: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9, "dampening": 0.3},
    {"name": "adam"},
    {"name": "adam", "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-4, "weight_decay": 0.1},
    {"name": "adamw"},
    {"name": "adam", "amsgrad": True, "beta2": 0.5},
    {"name": "adamw", "weight_decay": 0.0},
    {"name": "adagrad"},
    {"name": "adagrad", "learning_rate_decay": 0.1, "initial_accumulator": 0.5, "epsilon": 1e-3,
     "weight_decay": 0.1},
    {"name": "rmsprop"},
    {"name": "rmsprop", "alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
]  # fmt: skip


def slots(plan: Plan) -> dict[str, Array]:
    return {
        slot.value_name: np.full(slot.shape, slot.initial, np.float32)
        for slot in plan.manifest.optimizer.slots
    }


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_plan_steps_as_torch_optim_does(settings: dict[str, Any]) -> None:
    """Also where a gradient is zero: an Adam without its epsilon would give NaN."""
    case = ZOO["mlp"]
    plan = opened(compile_case(case, "mlp", optimizer={**settings, "learning_rate": 0.01}))
    graph = GraphRuntime(plan, "apply.onnx", threads=1)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    state |= slots(plan)

    chosen, rate = optimizer_from({**settings, "learning_rate": 0.01})
    model = case.build().double()
    reference = chosen.eager(model.parameters(), rate)
    draw = np.random.default_rng(0)
    for _ in range(4):
        gradients = {}
        for name, parameter in model.named_parameters():
            value = draw.standard_normal(tuple(parameter.shape), np.float32)
            value.reshape(-1)[::2] = 0
            gradients[f"g.{name}"] = value
            parameter.grad = torch.from_numpy(value).double()
        reference.step()
        results = graph.run({**state, **gradients, "h.learning_rate": np.array(rate, np.float32)})
        state = {name.removeprefix("new."): array for name, array in results.items()}
    for name, parameter in model.named_parameters():
        exact = parameter.detach().numpy()
        np.testing.assert_allclose(
            np.asarray(state[f"p.{name}"], float), exact, rtol=2e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion", "learning_rate": 1}, "'lion' is not known; known: sgd, adam, adamw, ada"),
        ({"name": "sgd", "learning_rate": 1, "beta1": 0.5}, "unknown setting 'beta1'; allowed"),
        ({"name": "sgd", "learning_rate": 1, "momentum": 1.0}, "expected 0 <= momentum < 1"),
        ({"name": "sgd", "learning_rate": 1, "momentum": True}, "expected a number"),
        ({"name": "sgd", "learning_rate": 1, "nesterov": 1}, "expected true or false"),
        ({"name": "sgd", "learning_rate": 1, "nesterov": True}, "nesterov needs a momentum"),
        ({"name": "sgd", "learning_rate": 1, "dampening": 0.1}, "dampening needs a momentum"),
        ({"name": "sgd", "learning_rate": 1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
         "nesterov needs a momentum above 0 and no dampening"),
        ({"name": "adagrad", "learning_rate": 1, "initial_accumulator": -1.0},
         "initial_accumulator is -1.0; expected 0 <= initial_accumulator"),
        ({"name": "rmsprop", "learning_rate": 1, "alpha": 1.0}, "expected 0 <= alpha < 1"),
        ({"name": "rmsprop", "learning_rate": 1, "centered": 1}, "expected true or false"),
        ({"name": "sgd", "learning_rate": 0}, "expected a number above 0"),
        ({"name": "sgd"}, "learning_rate is None"),
        ({"name": "adam", "learning_rate": 1, "epsilon": 0.0}, "0 < epsilon < 1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        optimizer_from(settings)


def test_a_centred_variance_below_zero_counts_as_zero() -> None:
    """Where rounding makes torch's own NaN: a constant gradient, whose variance is zero."""
    rule = RmsProp(centered=True, alpha=0.9)
    parameter, gradient = torch.zeros(1000), torch.linspace(1.0, 2.0, 1000)
    state = [torch.zeros(1000), torch.zeros(1000)]
    for _ in range(300):
        parameter, state = rule.update(parameter, gradient, state, [], torch.tensor(1e-6))
    assert (state[0] - state[1] * state[1]).min() < 0
    assert parameter.isfinite().all()
