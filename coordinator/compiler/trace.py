"""Traces a pure step function into one flat graph of ATen operators.

The step maps named tensors to named tensors. Autograd runs inside the trace, so the backward pass
and the optimizer become operators like any other. Only the batch dimension is symbolic. Such a
trace is decomposed further for ONNX. For torch a step is traced as it is called, before autograd
and with the operators that torch has kernels for; the device differentiates it.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from coordinator.compiler.functional import functional
from coordinator.compiler.places import PlaceKeepingInterpreter, Places, author_line, place
from headwater.aten_operators import ATEN_OPERATORS, DROPOUT_ARGUMENTS, STATISTICS_OPERATORS
from headwater.errors import CompileError

TRACE_BATCH_SIZE = 11
"""Only a hint: a prime, which few layers have for a width."""

_TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")

_UNSUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.complex64, torch.complex128)

_COPIES = (
    torch.ops.aten.clone.default, torch.ops.aten.detach.default, torch.ops.aten.alias.default,
)  # fmt: skip

Step = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class TracedStep:
    """A functional graph: its placeholders are `inputs` and it returns the list `outputs`."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def select(self, outputs: Sequence[str], prune: bool = True) -> "TracedStep":
        """A copy that computes only some outputs and, pruned, takes only what those need."""
        graph = fx.Graph()
        kept = dict.fromkeys(outputs)
        copies: dict[fx.Node, fx.Node] = {}
        results = graph.graph_copy(self.module.graph, copies)
        by_name = dict(zip(self.outputs, results, strict=True))  # type: ignore[arg-type]
        graph.output([by_name[name] for name in kept])
        graph.eliminate_dead_code(_has_effect)
        inputs = []
        for name, old in zip(self.inputs, self.placeholders, strict=True):
            if copies[old].users or not prune:
                inputs.append(name)
            else:
                graph.erase_node(copies[old])
        return TracedStep(fx.GraphModule(self.module, graph), tuple(inputs), tuple(kept))

    @property
    def placeholders(self) -> list[fx.Node]:
        """The input nodes, in the order of `inputs`."""
        return list(self.module.graph.find_nodes(op="placeholder"))

    @property
    def results(self) -> dict[str, Any]:
        """The returned nodes by output name."""
        return dict(zip(self.outputs, self.module.graph.output_node().args[0], strict=True))  # type: ignore[arg-type]

    def unchanged(self, output: str, source: str) -> bool:
        """Whether an output is merely an input handed through."""
        node = self.results[output]
        while isinstance(node, fx.Node) and node.target in _COPIES:
            node = node.args[0]
        return node is dict(zip(self.inputs, self.placeholders, strict=True))[source]


def trace_step(
    step: Step, examples: Mapping[str, Tensor], batched: Sequence[str], modules: nn.Module
) -> TracedStep:
    """Trace `step` over tensors that look like `examples`; `batched` names have a batch dimension.

    `modules` is the author's model: operators remember the module and the line that called them.

    Raises:
        CompileError: control flow that depends on data, a fixed batch size, operators that draw
            random numbers or half precision.
    """
    module, names = _recorded(step, examples, batched, modules, {})
    with _quiet():
        module = functional(module)
    module.graph.eliminate_dead_code()
    return TracedStep(module, tuple(examples), names)


def trace_forward(
    step: Step, examples: Mapping[str, Tensor], batched: Sequence[str], modules: nn.Module
) -> TracedStep:
    """Trace a step for torch: layers are one operator each, and writes stay in place.

    Raises:
        CompileError: as `trace_step`.
    """
    module, names = _recorded(
        step, examples, batched, modules,
        {"pre_dispatch": True, "decomposition_table": _parts_of_composites()},
    )  # fmt: skip
    return TracedStep(module, tuple(examples), names)


def _recorded(
    step: Step,
    examples: Mapping[str, Tensor],
    batched: Sequence[str],
    modules: nn.Module,
    options: Mapping[str, Any],
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph that make_fx records, and the names of its outputs."""
    names: list[str] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        results = step(dict(zip(examples, tensors, strict=True)))
        names[:] = results
        return list(results.values())

    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fakes = [_fake(mode, tensor, name in batched) for name, tensor in examples.items()]
    places = Places(modules)
    with _explained(places), _quiet(), mode, places:
        module = make_fx(flat, tracing_mode="real", _allow_non_fake_inputs=True, **options)(*fakes)
    if batched:
        _check_batch(fakes[list(examples).index(batched[0])])
    _check_operators(module.graph)
    return module, tuple(names)


@cache
def _parts_of_composites() -> dict[OpOverload, Callable[..., Any]]:
    """How to take apart what torch composes of other operators and devices do not run as one."""
    found = {}
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"):
        library, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        full = f"aten.{packet}.{overload or 'default'}"
        operator_ = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if library == "aten" and isinstance(operator_, OpOverload) and full not in ATEN_OPERATORS:
            found[operator_] = operator_.decompose
    return found


def _has_effect(node: fx.Node) -> bool:
    """Writes count: those that the schema tells of, and a batch norm's statistics."""
    return node.is_impure() or str(node.target) in STATISTICS_OPERATORS


def decompose(step: TracedStep, table: Mapping[Any, Callable[..., Any]]) -> TracedStep:
    """The same step with operators replaced by those of a decomposition table."""
    values = [node.meta["val"] for node in step.placeholders]
    mode = next(value.fake_mode for value in values)
    with _quiet(), mode:
        interpreter = PlaceKeepingInterpreter(step.module)
        traced = make_fx(
            lambda *tensors: interpreter.run(*tensors, enable_io_processing=False),
            decomposition_table=dict(table), tracing_mode="real", _allow_non_fake_inputs=True,
        )(*values)  # fmt: skip
    traced.graph.eliminate_dead_code()
    for value in values:
        if any(not isinstance(size, int) and _fixed(size) for size in value.shape):
            raise CompileError(
                "a decomposition of ours fixes the batch size: please report this model"
            )
    return TracedStep(traced, step.inputs, step.outputs)


def _fake(mode: FakeTensorMode, tensor: Tensor, batched: bool) -> Tensor:
    """A tensor without values. Letting torch choose what is symbolic would give one symbol to any
    two equal sizes (batch 8, embedding width 8) and so freeze the batch.
    """
    sizes = [DimDynamic.STATIC] * tensor.dim()
    if batched:
        sizes[0] = DimDynamic.DUCK
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context)


def _check_batch(example: Tensor) -> None:
    size = example.shape[0]
    if isinstance(size, int) or _fixed(size):
        raise CompileError(
            "the model or loss fixes the batch size (a comparison or int() of a batch dimension): "
            "use x.shape[0] only in shapes, so that the last, smaller batch can run"
        )


def _fixed(size: torch.SymInt) -> bool:
    """Whether a symbolic size was found to be one number."""
    return size.node.maybe_as_int() is not None or not size.node.expr.free_symbols


def _check_operators(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        if node.target is torch.ops.aten._local_scalar_dense.default:
            raise CompileError(
                f"the value of a tensor leaves the graph {place(node)} (.item(), int(), float()): "
                "a plan is one fixed graph; keep the value a tensor"
            )
        may_draw = torch.Tag.nondeterministic_seeded in node.target.tags
        if may_draw and str(node.target) not in DROPOUT_ARGUMENTS:
            raise CompileError(
                f"{node.target} {place(node)} draws random numbers: only dropout draws alike on "
                "every device; use dropout, or bring the noise as an input"
            )
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype in _UNSUPPORTED_DTYPES:
            raise CompileError(
                f"{node.target} {place(node)} computes in {value.dtype}: the step must compute in "
                "float32 (remove autocast and .half())"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, and without its log of errors, which `_explained` tells."""
    was_disabled, _TORCH_LOG.disabled = _TORCH_LOG.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        _TORCH_LOG.disabled = was_disabled


@contextmanager
def _explained(places: Places) -> Iterator[None]:
    """Turns what torch raises while it traces into an error that names the author's line."""
    try:
        yield
    except CompileError as error:
        raise CompileError(f"{error}{places.current}{author_line(error)}") from error
    except Exception as error:
        where = places.current + author_line(error)
        if _depends_on_data(error):
            raise CompileError(
                "the model, loss or metric branches on the values of a tensor (if, while, int(), "
                f".item(), a mask that changes a shape){where}: a plan is one fixed graph; use "
                "torch.where"
            ) from error
        # torch calls the batch's size s31 or the like.
        reason = re.sub(r"\bs\d+\b", "batch", str(error).strip().split("\n")[0][:300])
        raise CompileError(
            f"the model, loss or metric cannot be traced{where}: {type(error).__name__}: {reason}"
        ) from error


def _depends_on_data(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, GuardOnDataDependentSymNode)
        or bool(names & {"DataDependentOutputException", "DynamicOutputShapeException"})
        or "data-dependent" in str(error).lower()
    )
