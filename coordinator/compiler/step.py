"""The author's model as pure step functions over named tensors: gradients, optimizer, evaluation.

Names are those of the plan's graphs: `p.` state, `f.` frozen, `o.` optimizer, `g.` gradients,
`x0`.. inputs, `y0`.. targets, `h.learning_rate`, `seed`; `new.` marks the state after the step.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from coordinator.compiler.images import prepared
from coordinator.compiler.losses import checked_loss, shape_of
from coordinator.compiler.metrics import Metric
from coordinator.compiler.optimizers import Optimizer
from coordinator.compiler.rewrites import PortableFunctions
from headwater.errors import CompileError
from headwater.preparation import Image

LEARNING_RATE = "h.learning_rate"
SEED = "seed"

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What an author brings: the parts of a training step."""

    model: nn.Module
    loss: Callable[..., Tensor]
    metrics: Mapping[str, Metric]
    optimizer: Optimizer
    input_count: int
    target_count: int
    images: tuple[Image | None, ...] = ()
    """How each input is made from uint8 pixels before the model sees it; None for other inputs."""
    eager: bool = False
    """Run torch's own attention and recurrent layers, as the yardstick of the parity gate does."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; tied ones once."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def input_names(self) -> list[str]:
        """`x0`, `x1`, ..."""
        return [f"x{index}" for index in range(self.input_count)]

    @property
    def target_names(self) -> list[str]:
        """`y0`, `y1`, ..."""
        return [f"y{index}" for index in range(self.target_count)]


class _Forward(nn.Module):
    """Reads the buffers after the forward pass, so that `self.buffer = new` is seen like `add_`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        output = self.inner(*inputs)
        return output, dict(self.inner.named_buffers())


def forward(recipe: Recipe, tensors: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward pass: `({"output", "loss", "m."...}, buffers afterwards)`.

    Buffers are copied first, since models write them in place.
    """
    buffers = {name for name, _ in recipe.model.named_buffers()}
    values = {
        name[2:]: value.clone() if name[2:] in buffers else value
        for name, value in tensors.items()
        if name[:2] in ("p.", "f.")
    }
    state = {f"inner.{place}": values[name] for place, name in _tensor_places(recipe.model)}
    inputs = _prepared(recipe, tensors)
    targets = [tensors[name] for name in recipe.target_names]
    with PortableFunctions(tensors[SEED], only_random=recipe.eager):
        output, after = functional_call(_Forward(recipe.model), state, inputs, tie_weights=False)
        loss = checked_loss(recipe.loss(output, *targets))
        results = {"loss": loss}
        for name, metric in recipe.metrics.items():
            value = metric(_detached(output), *targets)
            results[f"m.{name}"] = _scalar(name, value).to(torch.float32)
    if isinstance(output, Tensor):
        results["output"] = output
    return results, after


def _tensor_places(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Where each tensor is, with its name: several places where tensors are tied.

    A module that is registered under two names is one place. torch's own tying would write there
    twice and then put the first writing back instead of the module's own tensor.
    """
    names = {id(one): name for name, one in (*model.named_parameters(), *model.named_buffers())}
    for prefix, module in model.named_modules():
        for attribute, tensor in (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ):
            yield f"{prefix}.{attribute}" if prefix else attribute, names[id(tensor)]


def _prepared(recipe: Recipe, tensors: Named) -> tuple[Tensor, ...]:
    """The inputs as the model takes them; images are augmented while it is in training mode."""
    inputs = [tensors[name] for name in recipe.input_names]
    dtype = tensors[f"p.{next(iter(recipe.parameters))}"].dtype
    seed = tensors[SEED] if recipe.model.training else None
    for index, image in enumerate(recipe.images):
        if image is not None:
            inputs[index] = prepared(image, inputs[index], index, dtype, seed)
    return tuple(inputs)


def gradients(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """`g.` of each trainable parameter, `new.p.` of each buffer, the loss and the metrics."""
    names = list(recipe.parameters)
    leaves = {f"p.{name}": tensors[f"p.{name}"].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        results, buffers = forward(recipe, {**tensors, **leaves})
        found = torch.autograd.grad(
            results["loss"], list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    outputs = {f"g.{name}": value for name, value in zip(names, found, strict=True)}
    outputs |= {f"new.p.{name}": value.detach() for name, value in buffers.items()}
    return outputs | {n: value.detach() for n, value in results.items() if n != "output"}


def apply(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """The optimizer's step: `new.p.` and `new.o.` from `p.`, `o.`, `g.` and the learning rate."""
    optimizer = recipe.optimizer
    scalars, shared = optimizer.advance([tensors[f"o.{name}"] for name in optimizer.scalars])
    results = {f"new.o.{n}": s for n, s in zip(optimizer.scalars, scalars, strict=True)}
    for name in recipe.parameters:
        slots = [tensors[f"o.{slot}.{name}"] for slot in optimizer.slots]
        new, new_slots = optimizer.update(
            tensors[f"p.{name}"], tensors[f"g.{name}"], slots, shared, tensors[LEARNING_RATE]
        )
        results[f"new.p.{name}"] = new
        for slot, value in zip(optimizer.slots, new_slots, strict=True):
            results[f"new.o.{slot}.{name}"] = value
    return results


def train(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """Gradients and optimizer in one step; the gradients are among the outputs."""
    outputs = gradients(recipe, tensors)
    return outputs | apply(recipe, {**tensors, **outputs})


def evaluate(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """The model's output, the loss and the metrics; the model must be in evaluation mode."""
    with torch.no_grad():
        results, _ = forward(recipe, tensors)
    if "output" not in results:
        raise CompileError("the model's output is not one tensor: return one tensor from forward")
    return results


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise CompileError(
            f"the metric {name!r} returned {shape_of(value)}; expected one number, the mean"
        )
    return value
