from collections.abc import Iterator

import numpy as np
import pytest

from headwater.batch import Batch
from headwater.errors import DataError, PlanError
from headwater.evaluation import evaluate
from headwater.graph_runtime import GraphRuntime
from tests.plans import compiled, opened
from tests.zoo import ZOO, batch


class Stored:
    """One batch of examples, cut as asked."""

    def __init__(self, examples: Batch) -> None:
        self._examples = examples

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        assert seed is None
        whole = self._examples
        for start in range(0, whole.size, batch_size):
            part = slice(start, start + batch_size)
            yield Batch((whole.inputs[0][part],), (whole.targets[0][part],))


def test_batches_are_weighted_by_their_examples() -> None:
    plan, source = opened(compiled("lenet")), Stored(batch(ZOO["lenet"], 7, 1))
    weights = plan.initial_weights()
    whole = evaluate(plan, weights, source, 7, 1)
    cut = evaluate(plan, weights, source, 3, 1)
    assert whole["examples"] == cut["examples"] == 7
    assert cut == pytest.approx(whole, rel=1e-6)
    assert set(whole) == {"loss", "accuracy", "examples"}


def test_no_examples_are_refused() -> None:
    plan = opened(compiled("mlp"))
    empty = Stored(Batch((np.zeros((0, 20), np.float32),), (np.zeros(0, np.int64),)))
    with pytest.raises(DataError, match="the data set is empty"):
        evaluate(plan, plan.initial_weights(), empty, 4, 1)


def test_a_graph_says_what_it_lacks() -> None:
    graph = GraphRuntime(opened(compiled("mlp")), "predict.onnx", threads=1)
    with pytest.raises(PlanError, match=r"predict.onnx lacks the input 'p\."):
        graph.run({"x0": np.zeros((1, 20), np.float32)})


def test_a_failing_graph_is_reported_in_our_words(capfd: pytest.CaptureFixture[str]) -> None:
    plan = opened(compiled("mlp"))
    graph = GraphRuntime(plan, "predict.onnx", threads=1)
    values = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    with pytest.raises(PlanError, match=r"graph predict.onnx failed in onnxruntime"):
        graph.run({**values, "x0": np.zeros((1, 3), np.float32)})
    assert capfd.readouterr() == ("", "")
