"""Turns operators that write their arguments into ones that return what they would write.

Models write in place (`relu_`, the running statistics of a batch norm); ONNX has no such thing, and
the order of a functional graph carries no meaning.
"""

import copy
import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_map

from coordinator.compiler.places import place
from headwater.errors import CompileError

aten = torch.ops.aten

_SHARING = (
    aten._unsafe_view.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
    aten.unsafe_chunk.default,
)  # fmt: skip
"""Their results are an argument's memory, though their schemas do not say so."""


def functional(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a trace in which no operator writes its arguments; module paths are kept.

    `graph_module` comes from make_fx: its placeholders carry fake tensors in `meta["val"]`.

    Raises:
        CompileError: torch cannot express a write without writing.
    """
    copied = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    if not any(_writes(node) for node in copied.graph.nodes):
        return copied
    _rewrite_batch_norm(copied.graph)
    _rewrite_writes_to_fresh_tensors(copied.graph)
    copied.recompile()
    if not any(_writes(node) for node in copied.graph.nodes):
        return copied
    values = [node.meta["val"] for node in copied.graph.find_nodes(op="placeholder")]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), FakeTensorMode())
    interpreter = fx.Interpreter(copied, garbage_collect_values=False)

    def run(*tensors: torch.Tensor) -> Any:
        return interpreter.run(*tensors, enable_io_processing=False)

    try:
        with mode, preserve_node_meta():
            return make_fx(
                torch.func.functionalize(run, remove="mutations"),
                tracing_mode="real",
                _allow_non_fake_inputs=True,
            )(*values)
    except RuntimeError as error:
        writing = dict.fromkeys(
            f"{node.target} {place(node)}" for node in copied.graph.nodes if _writes(node)
        )
        raise CompileError(
            f"the training step writes tensors in place ({', '.join(writing)}) in a way that torch "
            "cannot turn around: use the forms without a trailing underscore"
        ) from error


def _writes(node: fx.Node) -> bool:
    """`native_batch_norm` writes too, though its schema does not say so."""
    return isinstance(node.target, OpOverload) and (
        node.target._schema.is_mutable or node.target is aten.native_batch_norm.default
    )


def _rewrite_writes_to_fresh_tensors(graph: fx.Graph) -> None:
    """The form without a write, where nothing else sees the tensor that is written: a trace uses
    the result of such an operator from there on. It spares torch another pass over the graph.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if _writes(node) and _is_fresh(node.args[0], node, order):
            node.target = _without_write(node) or node.target


def _without_write(node: fx.Node) -> OpOverload | None:
    """The operator of the same name and arguments that returns what this one writes."""
    target = node.target
    assert isinstance(target, OpOverload)
    arguments = target._schema.arguments
    packet = getattr(aten, target.overloadpacket.__name__.removesuffix("_"), None)
    plain = getattr(packet, target._overloadname, None)
    written = [place for place, one in enumerate(arguments) if one.alias_info is not None]
    if not isinstance(plain, OpOverload) or plain is target or written != [0]:
        return None
    forms = [
        [(one.name, str(one.type)) for one in given._schema.arguments] for given in (target, plain)
    ]
    if forms[0] != forms[1]:
        return None
    if any("val" not in one.meta for one in node.all_input_nodes):
        return None
    args, kwargs = tree_map(
        lambda one: one.meta["val"] if isinstance(one, fx.Node) else one, (node.args, node.kwargs)
    )
    keeps_dtype = plain(*args, **kwargs).dtype == node.meta["val"].dtype
    return plain if keeps_dtype else None


def _is_fresh(tensor: Any, write: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether an operator made this tensor, nothing shares its memory, and all read it before."""
    if not isinstance(tensor, fx.Node) or not isinstance(tensor.target, OpOverload):
        return False
    readers = [one for one in tensor.users if not isinstance(one.meta.get("val"), torch.SymInt)]
    read_before = all(order[reader] <= order[write] for reader in readers)
    return read_before and not any(
        _shares_memory(one) for one in (tensor, *readers) if one is not write
    )


def _shares_memory(node: fx.Node) -> bool:
    """Whether a node's result may be the memory of an argument."""
    if not isinstance(node.target, OpOverload) or node.target in _SHARING:
        return True
    return any(one.alias_info is not None for one in node.target._schema.arguments)


def _rewrite_batch_norm(graph: fx.Graph) -> None:
    """Let each batch norm return its new running statistics instead of writing them."""
    for node in graph.find_nodes(op="call_function", target=aten.native_batch_norm.default):
        features, weight, bias, mean, variance, training, momentum, epsilon = node.args
        if not training:
            node.target = aten._native_batch_norm_legit_no_training.default
            node.args = (features, weight, bias, mean, variance, momentum, epsilon)
        elif mean is None:
            node.target = aten._native_batch_norm_legit.no_stats
            node.args = (features, weight, bias, training, momentum, epsilon)
        else:
            node.target = aten._native_batch_norm_legit_functional.default
            _use_new_statistics(graph, node, (mean, variance))
            node.meta["val"] = (*node.meta["val"], mean.meta["val"], variance.meta["val"])


def _use_new_statistics(
    graph: fx.Graph, norm: fx.Node, statistics: tuple[fx.node.Argument, ...]
) -> None:
    order = {node: position for position, node in enumerate(graph.nodes)}
    for index, old in enumerate(statistics):
        if not isinstance(old, fx.Node):
            raise CompileError(
                "a batch norm keeps its running statistics outside the model's state"
            )
        with graph.inserting_after(norm):
            new = graph.call_function(operator.getitem, (norm, 3 + index))
        new.meta = {**norm.meta, "val": old.meta["val"]}
        old.replace_all_uses_with(
            new, delete_user_cb=lambda user: order.get(user, -1) > order[norm]
        )
