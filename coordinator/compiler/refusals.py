"""What the compiler refuses in the author's code, and the words for it.

Each refusal names the part of the model, the line, the operator or function, and what to write
instead (`coordinator.compiler.advice`).
"""

import operator
import random
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from coordinator.compiler.advice import advice
from coordinator.compiler.places import Places, author_line, part_of, place
from headwater.aten_operators import DROPOUT_ARGUMENTS
from headwater.errors import CompileError

aten = torch.ops.aten

_UNSUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
COPIES = (aten.clone.default, aten.detach.default, aten.alias.default)
_FIXED_GRAPH = "a plan is one fixed graph, and devices run it with other data"
_DATA_DEPENDENT = ("DataDependentOutputException", "DynamicOutputShapeException")
_BRANCHES = ("__bool__", "is_nonzero", "equal", "allclose")
_LEAVES = ("item", "tolist", "__int__", "__float__", "__index__", "numpy", "__array__")


def unsupported(nodes: Sequence[fx.Node]) -> CompileError:
    """An error that lists operators which devices do not run, each once."""
    found = {str(node.target): node for node in reversed(nodes)}
    listed = "; ".join(
        f"{name} {place(node)} is not supported on devices. Instead: {advice(name)}"
        for name, node in sorted(found.items())
    )
    return CompileError(listed)


@contextmanager
def explained(places: Places) -> Iterator[None]:
    """Turns what torch raises while it traces into an error that names the author's line."""
    try:
        yield
    except CompileError as error:
        where = (part_of(error) or places.current) + author_line(error)
        raise CompileError(f"{error}{where}") from error
    except Exception as error:
        line = author_line(error)
        where = (part_of(error) or places.current) + ("" if " at " in places.current else line)
        raise CompileError(_told(error, places.failed, where)) from error


def _told(error: Exception, function: str, where: str) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    operator = str(getattr(error, "func", ""))
    if isinstance(error, GuardOnDataDependentSymNode) or kinds & set(_DATA_DEPENDENT):
        return _depends_on_data(function, operator, where)
    if function in _LEAVES:
        return _depends_on_data(function, "", where)
    if "UnsupportedOperatorException" in kinds:
        return f"{operator}{where} is not supported on devices. Instead: {advice(operator)}"
    # torch calls the batch's size s31 or the like
    reason = re.sub(r"\bs\d+\b", "batch", str(error).strip().split("\n")[0][:300])
    what = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    hint = advice(function, "") if isinstance(error, RuntimeError | NotImplementedError) else ""
    if "torch.utils.checkpoint" in reason:
        hint = advice("checkpoint")
    if "does not require grad" in reason:
        hint = advice("inner_gradient")
    instead = f". Instead: {hint}" if hint else ""
    return f"the model, loss or metric cannot be traced{where}: {what}{instead}"


def _depends_on_data(function: str, operator: str, where: str) -> str:
    if function in _BRANCHES:
        what = f"the model, loss or metric branches on the values of a tensor{where}"
    elif function in _LEAVES:
        what = f"the value of a tensor leaves the graph{where} ({function.strip('_')})"
    else:
        named = operator or function
        what = f"the shape of a result depends on the values of a tensor{where} ({named})"
    instead = advice(function, "") or advice(operator)
    return f"{what}: {_FIXED_GRAPH}. Instead: {instead}"


def check_operators(graph: fx.Graph) -> None:
    """Refuse, in a trace as torch made it, what no lowering could make right.

    Raises:
        CompileError: random numbers, half or complex precision, writes to inputs or parameters.
    """
    for node in graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        may_draw = torch.Tag.nondeterministic_seeded in node.target.tags
        if may_draw and str(node.target) not in DROPOUT_ARGUMENTS:
            raise CompileError(
                f"{node.target} {place(node)} draws random numbers in a form that a plan does "
                f"not have. Instead: {advice(node.target)}"
            )
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype in _UNSUPPORTED_DTYPES:
            kind = "to" if value.dtype in _UNSUPPORTED_DTYPES[:2] else "complex"
            raise CompileError(
                f"{node.target} {place(node)} computes in {value.dtype}: the step must compute in "
                f"float32. Instead: {advice(kind)}"
            )
        _check_write(node)


def _check_write(node: fx.Node) -> None:
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if not (argument.alias_info and argument.alias_info.is_write):
            continue
        written = node.args[position] if position < len(node.args) else None
        while isinstance(written, fx.Node) and (
            _is_view(written.target) or written.target is operator.getitem
        ):
            written = written.args[0]
        if isinstance(written, fx.Node) and written.op in ("placeholder", "get_attr"):
            raise CompileError(
                f"{node.target} {place(node)} writes in place to an input, a parameter or a tensor "
                "outside of the model's state: make a new tensor (x = x + 1 and not x += 1, "
                "x.clone() before x[...] = ...), or register_buffer where the model remembers it"
            )


def _is_view(target: Any) -> bool:
    """Whether the result shares its memory with the first argument."""
    if not isinstance(target, OpOverload):
        return False
    alias = target._schema.arguments[0].alias_info if target._schema.arguments else None
    return alias is not None and not alias.is_write


def check_buffer_names(before: Set[str], after: Set[str]) -> None:
    """Refuse a forward pass that makes or deletes buffers.

    Raises:
        CompileError: with the buffer's name.
    """
    for name in sorted(before ^ after):
        did = "deletes" if name in before else "makes"
        raise CompileError(
            f"the model {did} buffer {name!r} while it runs: a plan's tensors are fixed: "
            "register_buffer in __init__, with its final shape"
        )


def check_buffers(before: Mapping[str, Tensor], after: Mapping[str, fx.Node]) -> None:
    """Refuse buffers that change their form in a step; both by the buffers' names.

    Raises:
        CompileError: with the buffer, both forms and the line.
    """
    for name, node in after.items():
        old, new = before[name], node.meta["val"]
        if tuple(new.shape) != tuple(old.shape) or new.dtype != old.dtype:
            raise CompileError(
                f"buffer {name!r} becomes {_form(new)} {place(_source(node))}, and was "
                f"{_form(old)}: every round starts from tensors of one shape and dtype. Instead: "
                "give it its final shape in __init__ and write a part of it "
                "(torch.roll, torch.where), or compute it from the batch without keeping it"
            )


def _source(node: fx.Node) -> fx.Node:
    """The node of the author's that a copy or a detached value of ours comes from."""
    while node.target in COPIES and not node.meta.get("stack_trace"):
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    return node


def _form(tensor: Tensor) -> str:
    sizes = ", ".join(str(s) if isinstance(s, int) else "batch" for s in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} [{sizes}]"


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward pass stores on modules, and refuses a memory outside the state.

    Raises:
        CompileError: a tensor or a number that was there before became another one: the next step
            would read it, and a plan would have it as a constant.
    """
    before = {path: (module, dict(vars(module))) for path, module in model.named_modules()}
    yield
    for path, (module, old) in before.items():
        for name, value in list(vars(module).items()):
            if value is old.get(name) or name in _recomputed(module):
                continue
            if isinstance(value, Tensor):
                _put_back(module, name, old)
            if name in old and _is_memory(old[name], value):
                where = f"module {path!r}" if path else "the model"
                raise CompileError(
                    f"{where} keeps what it computes in its attribute {name!r}, which the next "
                    "step would start from: only parameters and buffers are a plan's state. "
                    f'Instead: self.register_buffer("{name}", ...) in __init__, as float32'
                )


@contextmanager
def undrawn() -> Iterator[None]:
    """Refuses numbers from Python's and numpy's global generators.

    Raises:
        CompileError: one was drawn: a plan would hold that number, and devices draw no other.
    """
    before = _generators()
    yield
    for name, new in _generators().items():
        if not all(map(np.array_equal, before[name], new)):
            raise CompileError(
                f"the model or loss draws from {name} while it runs: a plan is traced once and "
                "would hold that one number. Instead: torch.rand(()) < p, with torch.where for "
                "what it decides, draws anew on devices"
            )


def _generators() -> dict[str, tuple[Any, ...]]:
    """The states of the global generators, whose parts are numbers and arrays."""
    of_numpy = np.random.get_state(legacy=False)["state"]
    return {"Python's random": random.getstate(), "numpy.random": tuple(of_numpy.values())}


def _recomputed(module: nn.Module) -> set[str]:
    """What the deprecated weight_norm and spectral_norm compute anew before each forward pass."""
    return {
        hook.name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    }


def _put_back(module: nn.Module, name: str, old: Mapping[str, Any]) -> None:
    if name in old:
        vars(module)[name] = old[name]
    else:
        del vars(module)[name]


def _is_memory(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return True
    numbers = int | float
    is_number = isinstance(old, numbers) and not isinstance(old, bool)
    return is_number and isinstance(new, numbers) and old != new
