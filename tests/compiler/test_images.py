"""Images in a plan: what its graphs make of bytes, in training and elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.counter_random import whole_numbers
from coordinator.compiler.images import prepared
from edge_client.fit import generated_batch
from edge_client.trainers import open_trainer
from headwater.batch import TensorSignature
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.preparation import Image, Text
from tests.plans import opened

SHAPE = (3, 6, 8)
AUGMENTED = Image((0.5, 0.4, 0.3), (0.25, 0.5, 1.0), "horizontal", 2)
LABEL = TensorSignature("label", (), "int64", 2, labels=("cat", "dog"))


class Probe(nn.Module):
    """Gives out the mean of what it is given, so that a loss shows the prepared pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 6 * 8, 2)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.linear(images.flatten(1))
        return found


@cache
def plan(image: Image = AUGMENTED) -> CompiledPlan:
    torch.manual_seed(0)
    return compile_plan(
        Probe(), "cross_entropy", ["accuracy"], {"name": "sgd", "learning_rate": 0.1},
        [TensorSignature("image", SHAPE, "uint8", image=image)], [LABEL],
        name="probe", batch_size=4, seed=1,
    )  # fmt: skip


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 256, (count, *SHAPE), np.uint8)


def made(image: Image, images: NDArray[np.uint8], seed: int | None) -> NDArray[Any]:
    drawn = None if seed is None else torch.tensor(seed)
    return prepared(image, torch.from_numpy(images), 0, torch.float32, drawn).numpy()


def normalized(image: Image, images: NDArray[np.uint8]) -> NDArray[Any]:
    mean, deviation = (
        np.array(values, np.float32)[:, None, None]
        for values in (image.mean, image.standard_deviation)
    )
    return (images.astype(np.float32) / np.float32(255) - mean) / deviation


def test_without_a_seed_pixels_are_normalized_only() -> None:
    images = pixels(4)
    np.testing.assert_array_equal(made(AUGMENTED, images, None), normalized(AUGMENTED, images))
    plain = made(Image(), images, 3)
    np.testing.assert_array_equal(plain, images.astype(np.float32) / np.float32(255))


def windows(image: NDArray[np.uint8], padding: int) -> list[NDArray[np.uint8]]:
    """Every crop of an image, the second half flipped."""
    _, height, width = image.shape
    around = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    crops = [
        around[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return [*crops, *(crop[:, :, ::-1] for crop in crops)]


def test_each_training_image_is_one_of_its_crops_and_flips_and_all_occur() -> None:
    """Also that an image is flipped within its window: padding stays where the crop put it."""
    image = replace(AUGMENTED, mean=(), standard_deviation=())
    images = np.repeat(pixels(1), 600, 0)
    possible = [w.astype(np.float32) / np.float32(255) for w in windows(images[0], 2)]
    chosen = [
        [index for index, window in enumerate(possible) if np.array_equal(window, one)]
        for one in made(image, images, 7)
    ]
    assert all(len(found) == 1 for found in chosen)
    assert {found[0] for found in chosen} == set(range(50))
    flipped = sum(found[0] >= 25 for found in chosen)
    assert 250 < flipped < 350


def test_a_flip_alone_and_a_crop_alone() -> None:
    images = pixels(40)
    flips = made(Image(flip="horizontal"), images, 1) * 255
    same = [np.allclose(a, b) for a, b in zip(flips, images, strict=True)]
    mirrored = [np.allclose(a, b[:, :, ::-1]) for a, b in zip(flips, images, strict=True)]
    assert [a or b for a, b in zip(same, mirrored, strict=True)] == [True] * 40
    assert 0 < sum(same) < 40
    crops = made(Image(crop_padding=1), images, 1) * 255
    for crop, image in zip(crops, images, strict=True):
        assert any(np.allclose(crop, one) for one in windows(image, 1)[:9])


def test_seeds_and_inputs_draw_apart() -> None:
    images = torch.from_numpy(pixels(16))
    first, again, other, second = (
        prepared(AUGMENTED, images, index, torch.float32, torch.tensor(seed))
        for index, seed in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, second)


def test_whole_numbers_are_uniform() -> None:
    drawn = whole_numbers(torch.tensor(5), 9, (7000,), 7)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=7)
    assert len(counts) == 7
    assert ((counts > 880) & (counts < 1120)).all()


def test_both_trainers_train_on_the_same_augmented_images() -> None:
    """Gradients of a linear model are the images: equal weights mean equal augmentation."""
    opened_plan = opened(plan())
    batch = generated_batch(opened_plan.manifest, 4)
    assert batch.inputs[0].dtype == np.uint8
    assert batch.inputs[0].max() > 200
    weights = {}
    for backend in ("onnxruntime", "torch"):
        trainer = open_trainer(opened_plan, backend, threads=1, device="cpu")  # type: ignore[arg-type]
        trainer.set_weights(opened_plan.initial_weights())
        trainer.train_step(batch, {"learning_rate": 10.0}, 11)
        weights[backend] = trainer.weights().floats.copy()
    np.testing.assert_allclose(weights["onnxruntime"], weights["torch"], rtol=1e-4, atol=1e-5)

    moved = torch.from_numpy(made(AUGMENTED, batch.inputs[0], 11))
    model = Probe()
    torch.manual_seed(0)
    model = Probe()
    loss = nn.functional.cross_entropy(model(moved), torch.from_numpy(batch.targets[0]))
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 10.0 * parameter.grad
    named = {n: p.detach().numpy() for n, p in model.named_parameters()}
    expected = opened_plan.layout.flatten(named).floats
    np.testing.assert_allclose(weights["onnxruntime"], expected, rtol=1e-4, atol=1e-5)


def test_prediction_normalizes_and_does_not_augment() -> None:
    opened_plan = opened(plan())
    images = pixels(5)
    graph = GraphRuntime(opened_plan, "predict.onnx", threads=1)
    values = {f"p.{n}": a for n, a in opened_plan.tensors("weights.safetensors").items()}
    torch.manual_seed(0)
    expected = Probe()(torch.from_numpy(normalized(AUGMENTED, images))).detach().numpy()
    np.testing.assert_allclose(graph.run({**values, "x0": images})["output"], expected, atol=1e-5)
    assert "seed" not in graph.inputs


def test_what_does_not_augment_draws_nothing() -> None:
    still = plan(replace(AUGMENTED, flip=None, crop_padding=0))
    assert not still.manifest.uses_seed
    assert plan().manifest.uses_seed


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([TensorSignature("a", SHAPE, "float32", image=Image())], [LABEL],
         "'a': image goes with uint8, not float32"),
        ([TensorSignature("a", (5, 6, 8), "uint8", image=Image())], [LABEL],
         r"images have the shape \[channels, height, width\] with 1, 3 or 4 channels"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image((0.5,)))], [LABEL],
         "mean has 1 values for 3 channels"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image(crop_padding=6))], [LABEL],
         "crop_padding is 6; it must be less than the height and the width"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image(flip="diagonal"))], [LABEL],
         "flip is one of horizontal"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image((), (0.0, 1.0, 1.0)))], [LABEL],
         "standard_deviation is above 0"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image((float("nan"),) * 3))], [LABEL],
         "finite numbers"),
        ([TensorSignature("a", SHAPE, "uint8", image=Image())],
         [replace(LABEL, labels=("a", "b", "c"), maximum=3)],
         "target 'label' has 3 labels; the model's output has 2 classes: name each of them"),
        ([TensorSignature("a", (4,), "int64", text=Text(""))], [LABEL], "characters holds 0"),
        ([TensorSignature("a", (4,), "int64", text=Text("aba"))], [LABEL], "holds 'a' twice"),
        ([TensorSignature("a", (4, 4), "int64", text=Text("ab"))], [LABEL],
         r"a text has the shape \[characters\], not \[4, 4\]"),
        ([TensorSignature("a", (4,), "int64", text=Text("ab", unknown="c"))], [LABEL],
         "unknown = 'c' is not one character of the table"),
        ([TensorSignature("a", (4,), "int64", 1, text=Text("ab"))], [LABEL],
         "maximum is 1 with 2 characters"),
        ([TensorSignature("a", (), "int64", labels=("b", "b"))], [LABEL], "labels holds 'b' twice"),
        ([TensorSignature("a", (), "int64", labels=("b", ""))], [LABEL], "a label is empty"),
        ([TensorSignature("a", (4,), "int64", text=Text("ab"), labels=("b",))], [LABEL],
         "only one of image, text and labels can be"),
    ],
)  # fmt: skip
def test_signatures_that_contradict_themselves(
    inputs: Sequence[TensorSignature], targets: Sequence[TensorSignature], message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        compile_plan(
            Probe(), "cross_entropy", [], {"name": "sgd", "learning_rate": 0.1}, inputs, targets,
            name="probe", batch_size=4, seed=1,
        )  # fmt: skip
