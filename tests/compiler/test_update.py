"""What an author asks of the step beyond an optimizer, against plain torch in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coordinator.compiler import update
from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.optimizers.groups import GroupRule
from coordinator.compiler.options import StepOptions
from headwater.batch import Array, TensorSignature
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.plan import Plan
from tests.plans import opened

RATE = 0.1
MOMENTUM = 0.9
NORMS_AND_BIASES = (
    GroupRule("*.bias", weight_decay=0.0),
    GroupRule("1.*", weight_decay=0.0, learning_rate_scale=0.5),
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def compile_network(options: StepOptions, **changed: Any) -> CompiledPlan:
    arguments: dict[str, Any] = {
        "loss": "cross_entropy", "metrics": ["accuracy"],
        "optimizer": {"name": "sgd", "learning_rate": RATE, "momentum": MOMENTUM,
                      "weight_decay": 0.01},
        "inputs": [TensorSignature("features", (6,), "float32")],
        "targets": [TensorSignature("label", (), "int64", 3)],
        "name": "network", "batch_size": 8, "seed": 1, "options": options,
    }  # fmt: skip
    return compile_plan(network(), **{**arguments, **changed})


@dataclass(frozen=True)
class Case:
    """Options, and what they do to torch's own training loop before `optimizer.step()`."""

    options: StepOptions
    finish: Callable[[nn.Module, dict[str, Tensor]], object] = lambda model, given: None
    rules: tuple[GroupRule, ...] = ()


def pull_to_anchor(model: nn.Module, given: dict[str, Tensor]) -> None:
    terms = [(p - given[f"a.{n}"]).square().sum() for n, p in model.named_parameters()]
    (0.3 / 2 * sum(terms)).backward()  # type: ignore[union-attr]


def correct(model: nn.Module, given: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad += given[f"c.{name}"]


def all_at_once(model: nn.Module, given: dict[str, Tensor]) -> None:
    pull_to_anchor(model, given)
    nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    correct(model, given)


CASES = {
    "clip_norm": Case(
        StepOptions(clip_norm=0.2),
        lambda model, given: nn.utils.clip_grad_norm_(model.parameters(), 0.2),
    ),
    "clip_norm beyond reach": Case(StepOptions(clip_norm=1e6)),
    "clip_value": Case(
        StepOptions(clip_value=0.01),
        lambda model, given: nn.utils.clip_grad_value_(model.parameters(), 0.01),
    ),
    "proximal": Case(StepOptions(proximal=0.3), pull_to_anchor),
    "corrections": Case(StepOptions(corrections=True), correct),
    "groups": Case(StepOptions(groups=NORMS_AND_BIASES), rules=NORMS_AND_BIASES),
    "all": Case(
        StepOptions(proximal=0.3, clip_norm=0.2, corrections=True, groups=NORMS_AND_BIASES),
        all_at_once,
        NORMS_AND_BIASES,
    ),
}


def torch_groups(model: nn.Module, rules: tuple[GroupRule, ...]) -> list[dict[str, Any]]:
    """By hand: biases; what is left of the LayerNorm; the rest."""
    named = dict(model.named_parameters())
    if not rules:
        return [{"params": list(named.values())}]
    biases = [p for n, p in named.items() if n.endswith("bias")]
    return [
        {"params": biases, "weight_decay": 0.0},
        {"params": [named["1.weight"]], "weight_decay": 0.0, "lr": RATE / 2},
        {"params": [named["0.weight"], named["3.weight"]]},
    ]


def given_values(plan: Plan) -> dict[str, Array]:
    """Anchors and corrections, whatever the plan takes of them."""
    draw = np.random.default_rng(0)
    return {
        f"{kind}.{spec.name}": draw.standard_normal(spec.shape, np.float32) * np.float32(0.1)
        for kind in "ac"
        for spec in plan.layout.trainable
    }


def eager_steps(case: Case, steps: int, given: dict[str, Array]) -> dict[str, Array]:
    model = network().double()
    optimizer = torch.optim.SGD(
        torch_groups(model, case.rules), lr=RATE, momentum=MOMENTUM, weight_decay=0.01
    )
    doubles = {name: torch.from_numpy(array).double() for name, array in given.items()}
    for features, labels in data(steps):
        optimizer.zero_grad()
        logits = model(torch.from_numpy(features).double())
        nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]
        case.finish(model, doubles)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def data(steps: int) -> list[tuple[Array, Array]]:
    draw = np.random.default_rng(1)
    return [
        (draw.standard_normal((8, 6), np.float32), draw.integers(0, 3, 8)) for _ in range(steps)
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_what_torch_does_by_hand(name: str) -> None:
    case = CASES[name]
    plan = opened(compile_network(case.options))
    graph = GraphRuntime(plan, "train.onnx", threads=1)
    given = given_values(plan)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    state |= {s.value_name: np.zeros(s.shape, np.float32) for s in plan.manifest.optimizer.slots}
    scalars = {f"h.{n}": np.array(v, np.float32) for n, v in plan.manifest.hyperparameters.items()}
    for features, labels in data(5):
        results = graph.run({**state, **given, **scalars, "x0": features, "y0": labels})
        state = {n: results[f"new.{n}"] for n in state}
    for parameter, exact in eager_steps(case, 5, given).items():
        np.testing.assert_allclose(
            np.asarray(state[f"p.{parameter}"], float), exact, rtol=1e-5, atol=1e-6
        )


def test_the_manifest_names_the_groups() -> None:
    manifest = compile_network(StepOptions(clip_norm=0.5, groups=NORMS_AND_BIASES)).manifest
    groups = manifest.optimizer.groups
    assert [group.tensors for group in groups] == [
        ("0.bias", "1.bias", "3.bias"), ("1.weight",), ("0.weight", "3.weight"),
    ]  # fmt: skip
    assert [group.settings["weight_decay"] for group in groups] == [0.0, 0.0, 0.01]
    assert [group.learning_rate_scale for group in groups] == [1.0, 0.5, 1.0]
    assert manifest.step.clip_norm == 0.5


@pytest.mark.parametrize("name", ["proximal", "corrections"])
def test_only_plans_that_ask_for_them_take_the_inputs(name: str) -> None:
    letter = {"proximal": "a.", "corrections": "c."}[name]
    taken = compile_network(CASES[name].options).manifest.graphs
    for member in ("train.onnx", "apply.onnx"):
        assert any(port.startswith(letter) for port in taken[member].inputs)
    assert not any(port[:2] in ("a.", "c.") for port in taken["gradients.onnx"].inputs)
    plain = compile_network(StepOptions()).manifest.graphs["train.onnx"]
    assert not any(port[:2] in ("a.", "c.") for port in plain.inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: StepOptions(clip_norm=0.0), r"clip_norm is 0\.0; expected a number above 0"),
        (lambda: StepOptions(clip_value=float("inf")), "clip_value is inf"),
        (lambda: StepOptions(clip_norm=1.0, clip_value=1.0), "both set: choose one"),
        (lambda: StepOptions(proximal=-1.0), "proximal is -1.0"),
        (lambda: StepOptions(micro_batch_size=0), "micro_batch_size is 0; expected at least 1"),
        (lambda: StepOptions(call="kwargs"), "call is 'kwargs'; expected one of positional"),  # type: ignore[arg-type]
        (lambda: GroupRule("*", weight_decay=-1.0), r"group '\*': weight_decay is -1\.0"),
        (lambda: GroupRule("*", learning_rate_scale=float("nan")), "learning_rate_scale is nan"),
    ],
)
def test_options_out_of_range_are_refused(options: Callable[[], object], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        options()


def test_a_group_that_matches_nothing_is_refused() -> None:
    rules = (GroupRule("*.bias"), GroupRule("0.bias"))
    with pytest.raises(CompileError, match=r"group '0.bias' matches .* left are: 0.weight, 1.weig"):
        compile_network(StepOptions(groups=rules))


WRONG = {
    "clip_norm": ("clip_norm", lambda g, t: {n: a * 0.9 for n, a in g.items()}),
    "clip_value": ("clip_value", lambda g, t: {n: a * 0.9 for n, a in g.items()}),
    "proximal": ("proximal", lambda g, t: {n: a + 1e-3 * t[f"a.{n}"] for n, a in g.items()}),
    "corrections": ("corrections", lambda g, t: {n: a - t[f"c.{n}"] for n, a in g.items()}),
    "groups": ("groups", lambda g, t: {n: a * 1.001 for n, a in g.items()}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_gate_refuses_a_wrong_term(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    honest, (case, spoil) = update.directions, WRONG[name]

    def dishonest(names: Any, options: Any, tensors: Any) -> Any:
        return spoil(honest(names, options, tensors), tensors)

    monkeypatch.setattr(update, "directions", dishonest)
    with pytest.raises(CompileError, match=r"parameters lies .* from float64 torch"):
        compile_network(CASES[case].options)
