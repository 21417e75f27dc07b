"""A model's tensors: which train, which are averaged, which never change."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from coordinator.compiler.onnx_graph import NUMPY_OF_TORCH
from coordinator.compiler.refusals import check_buffers
from coordinator.compiler.step import Recipe
from coordinator.compiler.trace import TracedStep
from headwater.errors import CompileError
from headwater.layout import Layout, Role, TensorSpec

_NEW = "new."


@dataclass(frozen=True)
class ModelState:
    """Tensors by graph name (`p.` and `f.`), with their roles."""

    values: Mapping[str, Tensor]
    roles: Mapping[str, Role]
    positive: frozenset[str]
    constants: frozenset[str] = field(default_factory=frozenset)
    """Buffers, as `p.` names, that the trace showed never to change."""

    @cached_property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The layout's tensors, sorted by name."""
        return tuple(
            TensorSpec(
                name[2:],
                tuple(value.shape),
                str(NUMPY_OF_TORCH[value.dtype]),
                self.roles[name],
                name in self.positive,
            )
            for name, value in sorted(self.values.items(), key=lambda item: item[0][2:])
        )

    @property
    def layout(self) -> Layout:
        """The flat order."""
        return Layout(self.specs)

    @property
    def buffer_names(self) -> set[str]:
        """Graph names of averaged buffers."""
        return {n for n, role in self.roles.items() if role is Role.AVERAGED_BUFFER}

    def _is_buffer(self, output: str) -> bool:
        """Whether a training step's output is a buffer afterwards: all but new parameters are."""
        return self.roles.get(output.removeprefix(_NEW)) is not Role.TRAINABLE

    @property
    def frozen_names(self) -> list[str]:
        """Plain names of tensors that travel once, with the plan."""
        return [name[2:] for name, role in self.roles.items() if role is Role.FROZEN]

    def with_constants(self, training: TracedStep) -> "ModelState":
        """Make frozen what a training step hands through unchanged: masks, positions, tables.

        Raises:
            CompileError: a buffer changes whose dtype cannot be averaged.
        """
        results = training.results
        check_buffers(
            {name[2:]: self.values[name] for name in self.buffer_names},
            {n[6:]: results[n] for n in results if n.startswith("new.p.") and self._is_buffer(n)},
        )
        constants = frozenset(
            name for name in self.buffer_names if training.unchanged(_NEW + name, name)
        )
        for name in self.buffer_names - constants:
            dtype = self.values[name].dtype
            if dtype not in (torch.float32, torch.int64):
                raise CompileError(
                    f"buffer {name[2:]!r} of dtype {dtype} changes in training; buffers that "
                    "change must be float32 or int64"
                )
        rename = {name: f"f.{name[2:]}" for name in constants}
        return replace(
            self,
            values={rename.get(name, name): value for name, value in self.values.items()},
            roles={
                rename.get(name, name): Role.FROZEN if name in constants else role
                for name, role in self.roles.items()
            },
            constants=constants,
        )

    def renamed(self, traced: TracedStep) -> TracedStep:
        """A step whose constant buffers are `f.` inputs and no outputs."""
        kept = [name for name in traced.outputs if name.removeprefix(_NEW) not in self.constants]
        inputs = [f"f.{n[2:]}" if n in self.constants else n for n in traced.inputs]
        return replace(traced, inputs=tuple(inputs)).select(kept, prune=False)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors that modules computed from parameters and keep, as the deprecated
    weight_norm does, lose their history, which torch does not copy.

    Raises:
        CompileError: a parameter has hooks, which a copy loses.
    """
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise CompileError(
                f"parameter {name!r} has a hook, which is code that no plan carries: scale or mask "
                "in forward, or use the job's clipping and parameter groups"
            )
    kept = (value for module in model.modules() for value in vars(module).values())
    computed = [v for v in kept if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in computed})


def model_state(recipe: Recipe) -> ModelState:
    """The model's tensors as they are now, detached copies.

    Raises:
        CompileError: a dtype that plans do not carry, or a model with nothing to train.
    """
    values: dict[str, Tensor] = {}
    roles: dict[str, Role] = {}
    for name, parameter in recipe.model.named_parameters():
        _check_parameter(name, parameter)
        key = f"p.{name}" if parameter.requires_grad else f"f.{name}"
        values[key] = _copied(parameter)
        roles[key] = Role.TRAINABLE if parameter.requires_grad else Role.FROZEN
    for name, buffer in recipe.model.named_buffers():
        _check_values("buffer", name, buffer)
        if buffer.dtype not in NUMPY_OF_TORCH or buffer.dtype == torch.float64:
            raise CompileError(
                f"buffer {name!r} has dtype {buffer.dtype}; buffers must be float32, integer or "
                "bool: convert the model with .float()"
            )
        values[f"p.{name}"] = _copied(buffer)
        roles[f"p.{name}"] = Role.AVERAGED_BUFFER
    if Role.TRAINABLE not in roles.values():
        if not any(True for _ in recipe.model.parameters()):
            raise CompileError(
                "the model has no parameters: layers in a plain list or dict are not seen, "
                "nn.ModuleList and nn.ModuleDict hold them"
            )
        raise CompileError("the model has no parameter to train (requires_grad is off for all)")
    return ModelState(values, roles, frozenset(_variances(recipe.model)))


def state_names(model: nn.Module) -> tuple[dict[str, str], tuple[str, ...]]:
    """How the keys of the model's `state_dict` differ from the names of its tensors.

    Further keys of tied tensors with the name that they go by, and names that it does not have
    (buffers that are not persistent), sorted.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = {id(tensor): name for name, tensor in tensors}
    stored = model.state_dict(keep_vars=True)
    known = {key: names[id(value)] for key, value in stored.items() if id(value) in names}
    aliases = {key: name for key, name in known.items() if key != name}
    return aliases, tuple(sorted(set(names.values()) - set(stored)))


def _check_parameter(name: str, parameter: Tensor) -> None:
    _check_values("parameter", name, parameter)
    if parameter.dtype != torch.float32:
        instead = (
            "keep two float32 parameters, the real and the imaginary part"
            if parameter.is_complex()
            else "convert the model with .float()"
            if parameter.is_floating_point()
            else "keep whole numbers with register_buffer"
        )
        raise CompileError(
            f"parameter {name!r} has dtype {parameter.dtype}; parameters must be float32: {instead}"
        )


def _check_values(kind: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that has no values yet."""
    if nn.parameter.is_lazy(tensor):
        raise CompileError(
            f"{kind} {name!r} is lazy and has no shape yet: run the model once on an example in "
            "the factory, or give the layer its input size"
        )
    if tensor.is_meta:
        raise CompileError(
            f"{kind} {name!r} is on the meta device and has no values: build the model on the CPU, "
            "or call to_empty(device='cpu') and initialize it in the factory"
        )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _variances(model: nn.Module) -> set[str]:
    return {
        f"p.{n}" for n, _ in model.named_buffers() if n.endswith(("running_var", "moving_variance"))
    }
