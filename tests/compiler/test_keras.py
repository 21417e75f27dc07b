"""Keras 3 models on the torch backend compile like modules."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from headwater.batch import TensorSignature
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Role
from tests.plans import opened

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="keras is not installed: pip install keras")


def compile_keras(model: Any) -> CompiledPlan:
    return compile_plan(
        model, "cross_entropy", ["accuracy"], {"name": "sgd", "learning_rate": 0.1},
        [TensorSignature("image", (6, 6, 1), "float32")], [TensorSignature("label", (), "int64")],
        name="keras", batch_size=8, seed=1,
    )  # fmt: skip


def small(*layers: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 3, activation="relu"), *layers,
            keras.layers.Flatten(), keras.layers.Dense(4),
        ],
        name="net",
    )  # fmt: skip


def test_a_model_with_statistics_and_dropout_compiles() -> None:
    model = small(keras.layers.BatchNormalization(name="norm"), keras.layers.Dropout(0.3))
    before = [one.value.detach().clone() for one in model.weights]
    plan = opened(compile_keras(model))
    roles = {one.name: one for one in plan.layout.tensors}
    assert roles["net_norm_gamma"].role is Role.TRAINABLE
    assert roles["net_norm_moving_mean"].role is Role.AVERAGED_BUFFER
    assert roles["net_norm_moving_variance"].positive
    assert not any("seed" in name for name in roles)
    assert plan.manifest.uses_seed
    assert all(map(torch.equal, before, [one.value for one in model.weights]))
    assert "call" not in vars(model.layers[2])
    images = np.random.default_rng(0).standard_normal((5, 6, 6, 1)).astype(np.float32)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    found = GraphRuntime(plan, "predict.onnx", threads=1).run({**state, "x0": images})["output"]
    with torch.no_grad():
        wanted = model(torch.from_numpy(images), training=False).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: keras.layers.GaussianNoise(0.1), r"GaussianNoise\) draws random numbers"),
        (lambda: keras.layers.SpatialDropout2D(0.1), r"SpatialDropout2D\) draws random numbers"),
        (lambda: keras.layers.Dropout(0.1, noise_shape=(None, 1, 1, 3)), "without a noise_shape"),
    ],
)
def test_random_layers_are_refused(layer: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_keras(small(layer()))


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(CompileError, match=r"is not built .*keras\.Input"):
        compile_keras(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)]))


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(CompileError, match="KERAS_BACKEND=torch"):
        compile_keras(small())
