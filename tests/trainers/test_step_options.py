"""Everything that a step can be asked for at once, through both trainers, against plain torch.

The reference is written by hand in float64: whole batches, torch's own optimizer and clipping.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.optimizers.groups import GroupRule
from coordinator.compiler.options import StepOptions
from edge_client.trainers import Trainer, open_trainer
from edge_client.trainers.micro_batches import micro_batches
from edge_client.workbench import members_of
from headwater.batch import Array, Batch, TensorSignature
from headwater.errors import DataError, PlanError
from headwater.evaluation import evaluate
from headwater.plan import Plan
from tests.plans import opened

RATE, PROXIMAL, CLIP_NORM, ACCUMULATOR = 0.05, 0.3, 0.5, 0.25


class Pair(nn.Module):
    """Two inputs by name, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 5)
        self.right = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, *, words: Tensor, numbers: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.left(numbers) + self.right(words))
        return {"logits": self.head(hidden), "hidden": hidden, "nothing": None}


def loss(output: Mapping[str, Tensor], label: Tensor, size: Tensor, weight: Tensor) -> Tensor:
    each = nn.functional.cross_entropy(output["logits"], label, reduction="none")
    each = each + 0.1 * (output["hidden"].sum(1) - size).square()
    return (weight * each).sum() / weight.sum()


def length(output: Mapping[str, Tensor], label: Tensor, size: Tensor, weight: Tensor) -> Tensor:
    return (weight * output["hidden"].norm(dim=1)).sum() / weight.sum()


def network() -> Pair:
    torch.manual_seed(0)
    return Pair()


@cache
def plan() -> Plan:
    return opened(
        compile_plan(
            network(), loss, {"length": length},
            {"name": "adagrad", "learning_rate": RATE, "initial_accumulator": ACCUMULATOR},
            [TensorSignature("numbers", (6,), "float32"),
             TensorSignature("words", (), "int64", 7)],
            [TensorSignature("label", (), "int64", 3), TensorSignature("size", (), "float32")],
            name="pair", batch_size=8, seed=1,
            options=StepOptions(
                call="keywords", weight="importance", proximal=PROXIMAL, clip_norm=CLIP_NORM,
                corrections=True, groups=(GroupRule("*.bias", learning_rate_scale=0.5),),
                micro_batch_size=3,
            ),
        )
    )  # fmt: skip


def batch(seed: int, size: int = 8) -> Batch:
    draw = np.random.default_rng(seed)
    return Batch(
        (draw.standard_normal((size, 6), np.float32), draw.integers(0, 7, size)),
        (draw.integers(0, 3, size), draw.standard_normal(size, np.float32)),
        draw.random(size, np.float32),
    )


def correction() -> dict[str, Array]:
    draw = np.random.default_rng(9)
    return {
        spec.name: draw.standard_normal(spec.shape, np.float32) * np.float32(0.1)
        for spec in plan().layout.trainable
    }


class Reference:
    """The same training in plain float64 torch."""

    def __init__(self, corrected: Mapping[str, Array]) -> None:
        self.model = network().double()
        named = dict(self.model.named_parameters())
        biases = [p for n, p in named.items() if n.endswith("bias")]
        others = [p for n, p in named.items() if not n.endswith("bias")]
        self.optimizer = torch.optim.Adagrad(
            [{"params": biases, "lr": RATE / 2}, {"params": others}],
            lr=RATE, initial_accumulator_value=ACCUMULATOR,
        )  # fmt: skip
        self.corrected = {n: torch.from_numpy(a).double() for n, a in corrected.items()}
        self.begin_round()

    def begin_round(self) -> None:
        self.anchor = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def step(self, examples: Batch) -> float:
        self.optimizer.zero_grad()
        found = self.loss(examples)
        terms = [(p - self.anchor[n]).square().sum() for n, p in self.model.named_parameters()]
        (found + PROXIMAL / 2 * torch.stack(terms).sum()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for name, added in self.corrected.items():
            self.model.get_parameter(name).grad += added
        self.optimizer.step()
        return float(found.detach())

    def loss(self, examples: Batch) -> Tensor:
        numbers, words = map(torch.from_numpy, examples.inputs)
        label, size = map(torch.from_numpy, examples.targets)
        assert examples.weights is not None
        output = self.model(words=words, numbers=numbers.double())
        return loss(output, label, size.double(), torch.from_numpy(examples.weights).double())


@pytest.fixture(params=["onnxruntime", "torch"])
def trainer(request: pytest.FixtureRequest) -> Trainer:
    opened_trainer = open_trainer(plan(), request.param, threads=1, device="cpu")
    opened_trainer.set_weights(plan().initial_weights())
    return opened_trainer


def assert_equal(trainer: Trainer, reference: Reference) -> None:
    for name, array in plan().layout.unflatten(trainer.weights()).items():
        exact = reference.model.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(np.asarray(array, float), exact, rtol=2e-5, atol=2e-6)


def test_two_rounds_are_those_of_plain_torch_on_whole_batches(trainer: Trainer) -> None:
    """Each batch of 8 in parts of at most 3; the anchor moves when the second round begins."""
    reference = Reference(correction())
    trainer.set_correction(correction())
    for round_number in range(2):
        trainer.set_weights(trainer.weights())
        reference.begin_round()
        for seed in range(3):
            examples = batch(10 * round_number + seed, 8 - seed)
            found = trainer.train_step(examples, {}, seed)
            assert found["loss"] == pytest.approx(reference.step(examples), rel=1e-5)
            assert set(found) == {"loss", "length"}
    assert_equal(trainer, reference)


def test_weights_within_a_round_leave_its_anchor(trainer: Trainer) -> None:
    """Training that a process goes on with is held to where the round began."""
    trainer.train_step(batch(0), {"proximal": 5.0}, 0)
    middle, slots = trainer.weights(), trainer.optimizer_state()
    trainer.train_step(batch(1), {"proximal": 5.0}, 1)
    expected = trainer.weights().floats
    for anchor in (False, True):
        trainer.set_weights(plan().initial_weights())
        trainer.set_weights(middle, anchor=anchor)
        trainer.set_optimizer_state(slots)
        trainer.train_step(batch(1), {"proximal": 5.0}, 1)
        assert np.array_equal(trainer.weights().floats, expected) is not anchor


def test_a_correction_stays_until_it_is_set_anew(trainer: Trainer) -> None:
    reference = Reference({})
    trainer.set_correction(correction())
    trainer.set_correction(None)
    trainer.train_step(batch(0), {}, 0)
    reference.step(batch(0))
    assert_equal(trainer, reference)


def test_the_proximal_term_is_a_hyperparameter(trainer: Trainer) -> None:
    steps = [batch(seed) for seed in range(3)]
    distances = []
    for proximal in (0.0, 20.0):
        trainer.set_weights(plan().initial_weights())
        trainer.reset_optimizer()
        for examples in steps:
            trainer.train_step(examples, {"proximal": proximal}, 0)
        moved = trainer.weights().floats - plan().initial_weights().floats
        distances.append(float(np.linalg.norm(moved)))
    assert distances[1] < distances[0]


def test_an_optimizer_begins_with_its_initial_values(trainer: Trainer) -> None:
    trainer.train_step(batch(0), {}, 0)
    assert not all((slot == ACCUMULATOR).all() for slot in trainer.optimizer_state().values())
    trainer.reset_optimizer()
    assert all((slot == ACCUMULATOR).all() for slot in trainer.optimizer_state().values())


class Stored:
    """A source of given batches."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        return iter(self._batches)


def test_an_evaluation_without_weight_is_refused() -> None:
    whole = batch(0, 3)
    empty = Batch(whole.inputs, whole.targets, np.zeros(3, np.float32))
    with pytest.raises(DataError, match="leave examples of no weight out"):
        evaluate(plan(), plan().initial_weights(), Stored(whole, empty), 5, 1)


def test_evaluation_weights_examples_across_batches(trainer: Trainer) -> None:
    exact = float(Reference({}).loss(batch(3)).detach())
    assert trainer.evaluate_step(batch(3))["loss"] == pytest.approx(exact, rel=1e-5)
    found = evaluate(
        plan(), plan().initial_weights(), Stored(batch(3).part(0, 5), batch(3).part(5, 8)), 5, 1
    )
    assert found["loss"] == pytest.approx(exact, rel=1e-5)
    assert found["examples"] == 8


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "a batch has 2 targets; the plan takes 3: label, size, importance"),
        (np.array([1, -1, 1], np.float32), "'importance' of a batch holds the weight -1 and"),
        (np.zeros(3, np.float32), "and not all of a batch are 0"),
        (np.array([1, np.nan, 1], np.float32), "weights are finite numbers of at least 0"),
        (np.ones((3, 1), np.float32), r"'importance' of a batch has shape \(3, 1\)"),
        (np.ones(3), "'importance' of a batch has dtype float64"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(
    trainer: Trainer, weights: Array | None, message: str
) -> None:
    whole = batch(0, 3)
    with pytest.raises(DataError, match=message):
        trainer.train_step(Batch(whole.inputs, whole.targets, weights), {}, 0)


def test_corrections_of_another_model_are_refused(trainer: Trainer) -> None:
    wrong = correction()
    wrong.pop("head.bias")
    with pytest.raises(PlanError, match="the corrections do not fit plan 'pair'"):
        trainer.set_correction(wrong)


def test_outputs_by_name_are_those_of_the_prediction() -> None:
    ports = plan().manifest.graphs["predict.onnx"]
    assert set(ports.outputs) == {"output.logits", "output.hidden"}
    assert plan().manifest.targets[-1] == TensorSignature(
        "importance", (), "float32", is_weight=True
    )


def test_a_plan_with_micro_batches_brings_its_halves_only() -> None:
    manifest = plan().manifest
    wanted = {member.digest for member in members_of(manifest, "onnxruntime")}
    names = {name for name, member in manifest.members.items() if member.digest in wanted}
    assert names >= {"gradients.onnx", "apply.onnx"}
    assert "train.onnx" not in names


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_buffers_go_from_part_to_part(backend: str) -> None:
    """And the peak memory is that of a part."""
    compiled = compile_plan(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "cross_entropy", [],
        {"name": "sgd", "learning_rate": 0.1}, [TensorSignature("x", (6,), "float32")],
        [TensorSignature("y", (), "int64")], name="norm", batch_size=8, seed=1,
        options=StepOptions(micro_batch_size=4),
    )  # fmt: skip
    manifest = compiled.manifest
    assert manifest.step_memory_bytes(8) == manifest.step_memory_bytes(4)
    assert manifest.step_memory_bytes(4) > manifest.step_memory_bytes(3)
    small = opened(compiled)
    trainer = open_trainer(small, backend, threads=1, device="cpu")  # type: ignore[arg-type]
    trainer.set_weights(small.initial_weights())
    with pytest.raises(PlanError, match="takes no gradient corrections: compile it with"):
        trainer.set_correction({})
    examples = batch(0)
    trainer.train_step(Batch(examples.inputs[:1], examples.targets[:1]), {}, 0)
    assert trainer.weights().integers.tolist() == [2]


def test_a_batch_is_cut_evenly() -> None:
    parts = micro_batches(batch(0, 8), 3, seed=5)
    assert [part.batch.size for part in parts] == [2, 3, 3]
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert parts[0].seed == 5
    assert len({part.seed for part in parts}) == 3
    (whole,) = micro_batches(batch(0, 8), None, seed=5)
    assert (whole.batch.size, whole.share, whole.seed) == (8, 1.0, 5)


def test_a_part_without_weight_is_left_out() -> None:
    whole = batch(0, 4)
    half = Batch(whole.inputs, whole.targets, np.array([0, 0, 1, 1], np.float32))
    (part,) = micro_batches(half, 2, seed=0)
    assert part.share == 1
    np.testing.assert_array_equal(part.batch.targets[0], whole.targets[0][2:])
