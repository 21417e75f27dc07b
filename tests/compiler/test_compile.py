import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordinator.compiler import compile as compiler
from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from headwater.batch import TensorSignature
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Role
from tests.plans import compile_case, compiled, opened
from tests.zoo import ZOO, batch

FEATURES = TensorSignature("features", (20,), "float32")
LABEL = TensorSignature("label", (), "int64")
TOKENS = TensorSignature("tokens", (4,), "int64")


def embedding_of_11_rows() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 2), nn.Flatten(), nn.Linear(8, 5))


def compile_features(model: nn.Module, **changed: Any) -> CompiledPlan:
    arguments: dict[str, Any] = {
        "loss": "cross_entropy", "metrics": ["accuracy"],
        "optimizer": {"name": "sgd", "learning_rate": 0.1}, "inputs": [FEATURES],
        "targets": [LABEL], "name": "features", "batch_size": 8, "seed": 1,
    }  # fmt: skip
    return compile_plan(model, **{**arguments, **changed})


class Body(nn.Module):
    """A model whose forward is a function of the test's, after one linear layer."""

    def __init__(self, body: Callable[["Body", Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 5)
        self.body = body

    def forward(self, features: Tensor) -> Any:
        return self.body(self, features)


def small_image_model() -> nn.Module:
    """State of every kind: weights, running statistics, a counter; and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 3, 4), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(32, 5),
    )  # fmt: skip


class Twice(nn.Module):
    """A module and a buffer that are each registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 20)
        self.second = self.first
        self.register_buffer("mean", torch.zeros(20))
        self.first.register_buffer("average", self.mean)
        self.last = nn.Linear(20, 5)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(features.mean(0).detach(), alpha=0.1)
        hidden = self.second(torch.tanh(self.first(features - self.first.average)))
        return self.last(torch.tanh(hidden))


def test_a_module_and_a_buffer_under_two_names_are_one() -> None:
    """torch ties by writing to each name; a module with two names kept what was traced."""
    torch.manual_seed(0)
    plan = compile_features(Twice())
    assert {spec.name for spec in plan.manifest.tensors} == {
        "first.weight", "first.bias", "last.weight", "last.bias", "mean",
    }  # fmt: skip
    assert "new.p.first.weight" in plan.manifest.graphs["train.onnx"].outputs
    assert plan.manifest.aliases == {
        "second.weight": "first.weight", "second.bias": "first.bias",
        "first.average": "mean", "second.average": "mean",
    }  # fmt: skip


def test_compiling_twice_gives_the_same_bytes() -> None:
    one, two = (
        compile_case(ZOO["resnet"], "twice", model=small_image_model(), batch_size=3)
        for _ in range(2)
    )
    assert one.digest == two.digest
    assert one.members == two.members


@pytest.mark.parametrize("name", ZOO)
def test_every_zoo_model_has_all_members(name: str) -> None:
    plan = compiled(name)
    assert set(plan.members) == {
        "train.onnx", "gradients.onnx", "apply.onnx", "evaluate.onnx", "predict.onnx",
        "forward.aten.json", "apply.aten.json", "evaluate.aten.json", "weights.safetensors",
    }  # fmt: skip
    graphs = plan.manifest.graphs
    layout = plan.manifest.layout
    state = {
        f"p.{t.name}" for t in layout.trainable + layout.float_buffers + layout.integer_buffers
    }
    slots = {slot.value_name for slot in plan.manifest.optimizer.slots}
    assert {n for n in graphs["train.onnx"].outputs if n.startswith("new.")} == {
        f"new.{n}" for n in state | slots
    }
    assert set(graphs["gradients.onnx"].outputs) >= {f"g.{t.name}" for t in layout.trainable}
    assert graphs["predict.onnx"].outputs == ("output",)
    assert plan.manifest.uses_seed is (name == "dropout")
    assert plan.manifest.parity["steps"] >= 2
    for data in (plan.members[m] for m in graphs):
        assert not any(
            t.dims for t in onnx.load_from_string(data).graph.initializer if t.name[0] == "p"
        )


def test_the_model_is_left_as_it_was() -> None:
    model = small_image_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compile_case(ZOO["resnet"], "resnet", model=model)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_progress_is_told_in_words() -> None:
    heard: list[str] = []
    compile_features(nn.Linear(20, 5), progress=heard.append)
    assert len(heard) == 3
    assert "comparing the graphs with eager torch" in heard


def test_bounds_come_from_the_model() -> None:
    manifest = compiled("transformer").manifest
    assert manifest.targets[0].maximum == 11
    found = compile_features(embedding_of_11_rows(), inputs=[TOKENS]).manifest
    assert found.inputs[0].maximum == 11


def test_tied_weights_are_one_tensor() -> None:
    names = [t.name for t in compiled("transformer").manifest.tensors]
    assert "embedding.weight" in names
    assert "head.weight" not in names


def test_frozen_parameters_travel_with_the_plan() -> None:
    model = nn.Sequential(nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 5))
    model[0].requires_grad_(False)
    weight = model.state_dict()["0.weight"].numpy()
    plan = opened(compile_features(model))
    assert [t.name for t in plan.layout.trainable] == ["2.bias", "2.weight"]
    np.testing.assert_array_equal(plan.frozen_tensors()["0.weight"], weight)
    assert "f.0.weight" in plan.manifest.graphs["train.onnx"].inputs


def test_constant_buffers_are_frozen_and_changing_ones_averaged() -> None:
    """A buffer that is assigned, not written in place, is seen as well."""

    def body(model: Any, features: Tensor) -> Any:
        output = model.linear(features) * model.mask
        if model.training:
            model.running = 0.9 * model.running + 0.1 * output.detach().mean(0)
        return output

    model = Body(body)
    model.register_buffer("mask", torch.ones(5, dtype=torch.bool))
    model.register_buffer("running", torch.zeros(5))
    plan = opened(compile_features(model))
    roles = {t.name: t.role for t in plan.layout.tensors}
    assert roles["mask"] is Role.FROZEN
    assert roles["running"] is Role.AVERAGED_BUFFER
    assert "new.p.running" in plan.manifest.graphs["train.onnx"].outputs


def test_sequences_and_images_find_their_classes() -> None:
    output, target = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    from coordinator.compiler.losses import loss_function
    from coordinator.compiler.metrics import accuracy

    loss = loss_function("cross_entropy")
    wanted = F.cross_entropy(output.transpose(1, 2), target)
    assert torch.allclose(loss(output, target), wanted)
    assert torch.allclose(loss(output.transpose(1, 2), target), wanted)
    assert accuracy(output, target) == accuracy(output.transpose(1, 2), target)
    with pytest.raises(CompileError, match=r"second or the last dimension: write the loss"):
        loss(torch.randn(2, 6, 6), torch.randint(0, 6, (2, 6)))


def test_losses_and_metrics_of_the_author() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=0.1)

    def confidence(output: Tensor, target: Tensor) -> Tensor:
        return output.softmax(1).amax(1).mean()

    plan = compile_features(
        nn.Linear(20, 5), loss=loss, metrics={"accuracy": "accuracy", "confidence": confidence},
        targets=[TensorSignature("label", (), "int64", maximum=5)],
    )  # fmt: skip
    assert plan.manifest.metrics == ("accuracy", "confidence")
    assert "m.confidence" in plan.manifest.graphs["evaluate.onnx"].outputs


@pytest.mark.parametrize("loss", ["mse_loss", "binary_cross_entropy_with_logits", "huber_loss"])
def test_regression_losses(loss: str) -> None:
    target = TensorSignature("target", (5,), "float32")
    plan = compile_features(nn.Linear(20, 5), loss=loss, metrics=[], targets=[target])
    assert plan.manifest.targets == (target,)


@pytest.mark.parametrize("name", ["lenet", "transformer", "gru"])
def test_gradients_then_apply_is_train(name: str) -> None:
    plan = opened(compiled(name))
    values = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    values |= {s.value_name: np.zeros(s.shape, np.float32) for s in plan.manifest.optimizer.slots}
    examples = batch(ZOO[name], 5, 3)
    values |= {"x0": examples.inputs[0], "y0": examples.targets[0]}
    values |= {"h.learning_rate": np.array(0.01, np.float32), "seed": np.array(1)}
    train, first, second = (
        GraphRuntime(plan, f"{part}.onnx", threads=1) for part in ("train", "gradients", "apply")
    )
    whole = train.run(values)
    halves = first.run(values)
    halves |= second.run({**values, **halves})
    for output in (n for n in train.outputs if n.startswith("new.")):
        np.testing.assert_allclose(
            np.asarray(whole[output], float),
            np.asarray(halves[output], float),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize(
    "layer",
    [
        nn.ZeroPad2d((1, 2, 0, 1)), nn.ZeroPad2d((-1, 1, 0, 0)), nn.ConstantPad2d(1, 0.5),
        nn.ReflectionPad2d((1, 3, 2, 0)), nn.ReplicationPad2d((2, 5, 0, 1)),
        nn.CircularPad2d((1, 2, 3, 0)),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)  # fmt: skip
def test_padding_leaves_the_batch_size_open(layer: nn.Module) -> None:
    image = TensorSignature("image", (2, 4, 4), "float32")
    layer = copy.deepcopy(layer)
    sizes = layer(torch.zeros(1, 2, 4, 4)).numel()
    model = nn.Sequential(nn.Conv2d(2, 2, 1), layer, nn.Flatten(), nn.Linear(sizes, 5))
    plan = opened(compile_features(model, inputs=[image]))
    graph = GraphRuntime(plan, "predict.onnx", threads=1)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    for count in (1, 3):
        found = graph.run({**state, "x0": np.ones((count, 2, 4, 4), np.float32)})["output"]
        assert found.shape == (count, 5)


def test_layers_in_a_plain_list_are_not_seen() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(20, 5)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0](x)

    with pytest.raises(CompileError, match=r"has no parameters: .* nn.ModuleList"):
        compile_features(Plain())


def test_a_tensor_in_an_attribute_multiplies() -> None:
    """It is no parameter, so the gate's run in float64 meets it in float32."""

    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(20, 5)
            self.basis = torch.linspace(-1, 1, 400).reshape(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x @ self.basis)

    plan = compile_features(Rotated())
    assert plan.manifest.layout.trainable_count == 105


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(CompileError, match="no parameter to train"):
        compile_features(nn.Linear(20, 5).requires_grad_(False))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"loss": "crossentropy"},
            "loss 'crossentropy' is not known, did you mean \"cross_entropy\"\\?; use one of",
        ),
        ({"loss": "CrossEntropyLoss"}, 'did you mean "cross_entropy"'),
        ({"loss": "MSELoss"}, "loss 'MSELoss' is not known"),
        ({"metrics": ["acuracy"]}, 'did you mean "accuracy"'),
        ({"metrics": ["f1"]}, "metric 'f1' is not known"),
        ({"targets": [TensorSignature("y", (3,), "int64")]}, r"output is \[batch, 5\]"),
        ({"targets": [TensorSignature("y", (), "float32")]}, "declare the target's dtype as int64"),
        ({"targets": [TensorSignature("y", (), "int64", 9)]}, "output has 5 classes"),
        ({"loss": lambda output, target: output}, r"the loss returned \[batch, 5\]"),
        ({"loss": lambda output, target: 3.0}, "the loss returned float"),
        (
            {"metrics": {"m": lambda output, target: output}},
            r"a metric returned .* the metric 'm' \(",
        ),
        ({"loss": "mse_loss", "metrics": []}, "both need one shape"),
        ({"inputs": [TensorSignature("x", (20,), "complex64")]}, "has dtype 'complex64'; allowed"),
        ({"inputs": [TensorSignature("x", (20,), "int64", 9)]}, "must have the same dtype"),
        ({"metrics": {"loss": lambda output, target: output.mean()}}, "cannot be named 'loss'"),
        ({"batch_size": 0}, "batch_size is 0: give a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"seed": -5}, "seed is -5: give a whole number of at least 0"),
        ({"name": ""}, "no device would take this plan: .*name"),
        ({"inputs": [LABEL]}, "two inputs or targets are named 'label'"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_features(nn.Linear(20, 5), **changed)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear, "not a torch.nn.Module: give an instance"),
        (lambda features: features, "not a torch.nn.Module"),
        (nn.DataParallel(nn.Linear(20, 5)), "wrapped in DataParallel: give the module inside"),
        (nn.ConvTranspose2d(1, 1, 1, 1, 0, 2, dilation=3), "output_padding must be smaller"),
    ],
)
def test_models_that_are_none(model: Any, message: str) -> None:
    image = TensorSignature("image", (1, 6, 6), "float32")
    flat = nn.Sequential(model, nn.Flatten()) if isinstance(model, nn.ConvTranspose2d) else model
    with pytest.raises(CompileError, match=message):
        compile_features(flat, inputs=[image if flat is not model else FEATURES], metrics=[])


def test_an_embedding_smaller_than_its_input_is_refused() -> None:
    too_many = [TensorSignature("tokens", (4,), "int64", maximum=50)]
    with pytest.raises(CompileError, match=r"up to 49; the model's embedding has 11 rows"):
        compile_features(embedding_of_11_rows(), inputs=too_many)


def test_the_gate_refuses_a_wrong_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that is off by a thousandth in one gradient."""
    honest = compiler._onnx

    def dishonest(traced: Any, member: str) -> bytes:
        model = onnx.load_from_string(honest(traced, member))
        for node in model.graph.node:
            if member == "gradients.onnx" and node.output[0].startswith("g.1.weight"):
                node.output[0] = "wrong"
                model.graph.initializer.append(
                    onnx.numpy_helper.from_array(np.array(1.001, np.float32), "off")
                )
                model.graph.node.append(
                    onnx.helper.make_node("Mul", ["wrong", "off"], ["g.1.weight"])
                )
                break
        return model.SerializeToString()

    monkeypatch.setattr(compiler, "_onnx", dishonest)
    with pytest.raises(CompileError, match=r"gradients.gradients lies 1.0e-03 from float64 torch"):
        compile_case(ZOO["mlp"], "mlp")


def test_the_gate_refuses_an_adam_without_its_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinator.compiler.optimizers import Adam

    honest = Adam.update

    def without(self: Adam, *arguments: Any) -> Any:
        object.__setattr__(self, "epsilon", 0.0)
        try:
            return honest(self, *arguments)
        finally:
            object.__setattr__(self, "epsilon", 1e-8)

    monkeypatch.setattr(Adam, "update", without)
    with pytest.raises(CompileError, match=r"not finite in new\.p"):
        compile_case(ZOO["mlp"], "mlp", optimizer={"name": "adam", "learning_rate": 0.01})
