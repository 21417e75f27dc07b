"""Traces a pure step function into one flat graph of ATen operators.

The step maps named tensors to named tensors. Autograd runs inside the trace, so the backward pass
and the optimizer become operators like any other. Only the batch dimension is symbolic. Such a
trace is decomposed further for ONNX (`decompose`). For torch a step is traced as it is called,
before autograd and with the operators that torch has kernels for; the device differentiates it.
"""

import logging
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
    StatelessSymbolicContext,
)

from coordinator.compiler.batch_sizes import BatchSizes
from coordinator.compiler.functional import functional
from coordinator.compiler.native_recurrence import with_torchs_own
from coordinator.compiler.places import Places
from coordinator.compiler.refusals import COPIES, check_operators, explained, undrawn
from headwater.aten_operators import ATEN_OPERATORS, STATISTICS_OPERATORS

TRACE_BATCH_SIZE = 11
"""Only a hint: a prime, which few layers have for a width."""

_TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")

aten = torch.ops.aten

_PLAIN_VIEWS: dict[Any, OpOverload] = {
    aten.squeeze_.default: aten.squeeze.default, aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims, aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.transpose_.default: aten.transpose.int, aten.t_.default: aten.t.default,
    aten.detach_.default: aten.detach.default,
}  # fmt: skip
"""These write no values: what follows them in a trace uses their result."""

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
    def open_sizes(self) -> list[torch.SymInt]:
        """The sizes that are not known, each once: the batch's, or none."""
        shapes = [node.meta["val"].shape for node in self.placeholders]
        found = {str(size): size for shape in shapes for size in shape}
        return [size for size in found.values() if not isinstance(size, int)]

    @property
    def results(self) -> dict[str, Any]:
        """The returned nodes by output name."""
        return dict(zip(self.outputs, self.module.graph.output_node().args[0], strict=True))  # type: ignore[arg-type]

    def unchanged(self, output: str, source: str) -> bool:
        """Whether an output is merely an input handed through."""
        node = self.results[output]
        while isinstance(node, fx.Node) and node.target in COPIES:
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
    with quietly():
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
    return TracedStep(with_torchs_own(module), tuple(examples), names)


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
        with undrawn():
            results = step(dict(zip(examples, tensors, strict=True)))
        names[:] = results
        return list(results.values())

    shapes = BatchSizes()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    mode.cache_enabled = False  # with symbolic sizes a lookup takes longer than the kernel itself
    fakes = [_fake(mode, tensor, name in batched) for name, tensor in examples.items()]
    places = Places(modules)
    with explained(places), quietly(), mode, places:
        module = make_fx(flat, tracing_mode="real", _allow_non_fake_inputs=True, **options)(*fakes)
    check_operators(module.graph)
    for node in module.graph.nodes:
        node.target = _PLAIN_VIEWS.get(node.target, node.target)
    for index in [list(examples).index(name) for name in batched[:1]]:
        shapes.check(is_fixed(fakes[index].shape[0]))
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


def _fake(mode: FakeTensorMode, tensor: Tensor, batched: bool) -> Tensor:
    """A tensor without values. Letting torch choose what is symbolic would give one symbol to any
    two equal sizes (batch 8, embedding width 8) and so freeze the batch.
    """
    sizes = [DimDynamic.STATIC] * tensor.dim()
    if batched:
        sizes[0] = DimDynamic.DUCK
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context)


def is_fixed(size: int | torch.SymInt) -> bool:
    """Whether a symbolic size was found to be one number."""
    return (
        isinstance(size, int)
        or size.node.maybe_as_int() is not None
        or not size.node.expr.free_symbols
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Work without torch's warnings, without its log of errors, which `explained` tells, and
    without mkldnn, whose operators no other runtime has.
    """
    was_disabled, _TORCH_LOG.disabled = _TORCH_LOG.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        _TORCH_LOG.disabled = was_disabled
