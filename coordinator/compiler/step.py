"""The author's model as pure step functions over named tensors: gradients, optimizer, evaluation.

Names are those of the plan's graphs: `p.` state, `f.` frozen, `o.` optimizer, `g.` gradients,
`x0`.. inputs, `y0`.. targets, `w` the examples' weights, `h.` hyperparameters, `a.` the weights at
the round's start, `c.` corrections, `seed`; `new.` marks the state after the step.
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
from coordinator.compiler.optimizers.groups import ParameterGroup, parameter_groups
from coordinator.compiler.options import PLAIN, StepOptions
from coordinator.compiler.places import defined, part
from coordinator.compiler.refusals import check_buffer_names, kept_attributes
from coordinator.compiler.rewrites import PortableFunctions
from coordinator.compiler.update import update
from headwater.errors import CompileError
from headwater.preparation import Image

SEED = "seed"
WEIGHT = "w"

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What an author brings: the parts of a training step; `inputs` are the author's names."""

    model: nn.Module
    loss: Callable[..., Tensor]
    metrics: Mapping[str, Metric]
    optimizer: Optimizer
    inputs: tuple[str, ...]
    target_count: int
    options: StepOptions = PLAIN
    images: tuple[Image | None, ...] = ()
    """How each input is made from uint8 pixels before the model sees it; None for other inputs."""
    eager: bool = False
    """Run torch's own attention and recurrent layers: for torch, and as the gate's yardstick."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; tied ones once."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def input_names(self) -> list[str]:
        """`x0`, `x1`, ..."""
        return [f"x{index}" for index in range(len(self.inputs))]

    @property
    def target_names(self) -> list[str]:
        """`y0`, `y1`, ... and last `w`, where the examples are weighted."""
        names = [f"y{index}" for index in range(self.target_count)]
        return [*names, WEIGHT] if self.options.weight is not None else names

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The trainable parameters by what the optimizer does with them."""
        return parameter_groups(self.optimizer, self.options.groups, list(self.parameters))

    @property
    def added_names(self) -> list[str]:
        """The inputs that the options add for each parameter: `a.` anchors, `c.` corrections."""
        kinds = ["a"] * (self.options.proximal is not None) + ["c"] * self.options.corrections
        return [f"{kind}.{name}" for kind in kinds for name in self.parameters]


class _Forward(nn.Module):
    """Reads the buffers after the forward pass, so that `self.buffer = new` is seen like `add_`."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.inner = recipe.model
        self._call = recipe.options.call
        self._names = recipe.inputs

    def forward(self, *inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        named = dict(zip(self._names, inputs, strict=True))
        match self._call:
            case "keywords":
                output = self.inner(**named)
            case "dictionary":
                output = self.inner(named)
            case _:
                output = self.inner(*inputs)
        return output, dict(self.inner.named_buffers())


def forward(recipe: Recipe, tensors: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward pass: `({"output", "loss", "m."...}, buffers afterwards)`.

    An output of several tensors gives `output.NAME` for each. Buffers are copied first, since
    models write them in place.
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
        with kept_attributes(recipe.model):
            output, after = functional_call(_Forward(recipe), state, inputs, tie_weights=False)
        check_buffer_names(buffers, after.keys())
        if output is None:
            raise CompileError("the model's forward returns None: it lacks a return")
        with part(f"the loss{defined(recipe.loss)}"):
            results = {"loss": checked_loss(recipe.loss(output, *targets))}
        for name, metric in recipe.metrics.items():
            with part(f"the metric {name!r}{defined(metric)}"):
                value = _scalar(metric(_detached(output), *targets))
            results[f"m.{name}"] = value.to(torch.float32)
    return results | _outputs("output", output), after


def differentiable(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """The forward half of `gradients`: the loss, the metrics and `new.p.` of each buffer."""
    results, buffers = forward(recipe, tensors)
    outputs = {
        f"new.p.{name}": value.detach() if value.requires_grad else value
        for name, value in buffers.items()
    }
    return outputs | {n: value for n, value in results.items() if not is_output(n)}


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
        if not results["loss"].requires_grad:
            raise CompileError(
                "the loss does not depend on any trainable parameter: look for .detach(), "
                "torch.no_grad() or .data in the model and the loss"
            )
        found = torch.autograd.grad(
            results["loss"], list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    outputs = {f"g.{name}": value for name, value in zip(names, found, strict=True)}
    outputs |= {f"new.p.{name}": value.detach() for name, value in buffers.items()}
    figures = {n: value.detach() for n, value in results.items() if not is_output(n)}
    return outputs | figures


def apply(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """The optimizer's step: `new.p.` and `new.o.` from `p.`, `o.`, `g.` and the hyperparameters."""
    return update(recipe.groups, recipe.options, tensors)


def train(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """Gradients and optimizer in one step; the gradients are among the outputs."""
    outputs = gradients(recipe, tensors)
    return outputs | apply(recipe, {**tensors, **outputs})


def evaluate(recipe: Recipe, tensors: Named) -> dict[str, Tensor]:
    """The model's output, the loss and the metrics; the model must be in evaluation mode."""
    with torch.no_grad():
        results, _ = forward(recipe, tensors)
    if not any(map(is_output, results)):
        raise CompileError(
            "the model's output holds no tensor: return a tensor from forward, or a tuple, list or "
            "dictionary of tensors"
        )
    return results


def is_output(name: str) -> bool:
    """Whether a result is the model's output, or one of its tensors."""
    return name == "output" or name.startswith("output.")


def _outputs(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors of an output by name: keys of dictionaries and places in tuples and lists."""
    if isinstance(value, Tensor):
        return {name: value}
    parts: dict[str, Tensor] = {}
    if isinstance(value, Mapping):
        for key, part in value.items():
            parts |= _outputs(f"{name}.{key}", part)
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            parts |= _outputs(f"{name}.{index}", part)
    return parts


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise CompileError(
            f"a metric returned {shape_of(value)}; expected one number as a tensor, the mean over "
            "the batch (.mean())"
        )
    return value
