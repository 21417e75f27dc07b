"""The recurrent operators as Scans: a graph of one to three dozen nodes that runs once a step.

A Scan costs onnxruntime about 3 microseconds a step, against 100 for the arithmetic of a small
layer, so there is no length up to which unrolling would be faster. Products with the input and
gradients of weights stay outside, for all steps at once. Slopes of gates are worked out inside: one
step's are small enough for the cache, and need no memory. Results are written where they stay.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from coordinator.compiler.onnx_graph import GraphBuilder, element_type
from coordinator.compiler.onnx_lowering import Context, Result, Value, translates

Values = dict[str, str]
Step = Callable[[GraphBuilder, Values], Values]


@translates("headwater::lstm.default")
def _lstm(
    context: Context,
    projected: Value,
    hidden: Value,
    memory: Value,
    weight: Value,
    projection: Value | None,
    mask: Value | None,
    reverse: bool,
) -> Result:
    width = int(memory.shape[-1])

    def step(body: GraphBuilder, at: Values) -> Values:
        gates = body.op("Gemm", at["hidden"], weight.name, at["projected"], transB=1)
        sizes = body.integers([2 * width, width, width])
        pair, candidate, exit_ = body.ops("Split", 3, gates, sizes, axis=1)
        halves = body.integers([width, width])
        entry, forget = body.ops("Split", 2, body.op("Sigmoid", pair), halves, axis=1)
        candidate, exit_ = body.op("Tanh", candidate), body.op("Sigmoid", exit_)
        kept = body.op("Mul", forget, at["memory"])
        new_memory = body.op("Add", kept, body.op("Mul", entry, candidate))
        squashed = body.op("Tanh", new_memory)
        output = body.op("Mul", exit_, squashed)
        if projection is not None:
            output = body.op("Gemm", output, projection.name, transB=1)
        output, new_memory = (
            _held(body, at, new, at[name])
            for name, new in (("hidden", output), ("memory", new_memory))
        )
        return {
            "hidden": output, "memory": new_memory, "hiddens": output, "memories": at["memory"],
            "entry": entry, "forget": forget, "candidate": candidate, "exit": exit_,
            "squashed": squashed,
        }  # fmt: skip

    results = ("hiddens", "memories", "entry", "forget", "candidate", "exit", "squashed")
    states, sequences = {"hidden": hidden, "memory": memory}, {"projected": projected, "mask": mask}
    return _scan(context, step, states, sequences, results, reverse)


@translates("headwater::lstm_backward.default")
def _lstm_backward(
    context: Context,
    gradient: Value,
    to_hidden: Value,
    to_memory: Value,
    weight: Value,
    projection: Value | None,
    kept: Sequence[Value],
    mask: Value | None,
    reverse: bool,
) -> Result:
    names = ("before", "entry", "forget", "candidate", "exit", "squashed")

    def step(body: GraphBuilder, at: Values) -> Values:
        total = body.op("Add", at["gradient"], at["to_hidden"])
        counted = output = _counted(body, at, total)
        if projection is not None:
            output = body.op("MatMul", counted, projection.name)
        squashed = body.op("Mul", at["exit"], _slope_of_tanh(body, at["squashed"]))
        memory = body.op("Add", at["to_memory"], body.op("Mul", output, squashed))
        new = _counted(body, at, memory)
        gates = [
            _through_sigmoid(body, new, at["candidate"], at["entry"]),
            _through_sigmoid(body, new, at["before"], at["forget"]),
            _product(body, new, at["entry"], _slope_of_tanh(body, at["candidate"])),
            _through_sigmoid(body, output, at["squashed"], at["exit"]),
        ]
        to_gates = body.op("Concat", *gates, axis=1)
        to_memory = body.op("Mul", new, at["forget"])
        return {
            "to_hidden": _plus_passed_by(
                body, body.op("MatMul", to_gates, weight.name), total, counted
            ),
            "to_memory": _plus_passed_by(body, to_memory, memory, new),
            "to_projected": to_gates,
            "to_hiddens": counted,
        }

    states = {"to_hidden": to_hidden, "to_memory": to_memory}
    sequences = {"gradient": gradient, **dict(zip(names, kept, strict=True)), "mask": mask}
    results = ("to_projected", "to_hiddens")
    return _scan(context, step, states, sequences, results, not reverse)


@translates("headwater::gru.default")
def _gru(
    context: Context,
    projected: Value,
    hidden: Value,
    weight: Value,
    bias: Value | None,
    mask: Value | None,
    reverse: bool,
) -> Result:
    width = int(hidden.shape[-1])
    rows = context.integers([2 * width, width])
    to_gates, to_candidate = context.ops("Split", 2, weight.name, rows, axis=0)

    def step(body: GraphBuilder, at: Values) -> Values:
        sizes, halves = body.integers([2 * width, width]), body.integers([width, width])
        gates, candidate = body.ops("Split", 2, at["projected"], sizes, axis=1)
        gates = body.op("Sigmoid", body.op("Gemm", at["hidden"], to_gates, gates, transB=1))
        reset, update = body.ops("Split", 2, gates, halves, axis=1)
        biases = [] if bias is None else [bias.name]
        recurrent = body.op("Gemm", at["hidden"], to_candidate, *biases, transB=1)
        candidate = body.op("Tanh", body.op("Add", candidate, body.op("Mul", reset, recurrent)))
        change = body.op("Mul", update, body.op("Sub", at["hidden"], candidate))
        output = _held(body, at, body.op("Add", candidate, change), at["hidden"])
        return {
            "hidden": output, "hiddens": output, "reset": reset, "update": update,
            "candidate": candidate, "recurrent": recurrent,
        }  # fmt: skip

    results = ("hiddens", "reset", "update", "candidate", "recurrent")
    sequences = {"projected": projected, "mask": mask}
    return _scan(context, step, {"hidden": hidden}, sequences, results, reverse)


@translates("headwater::gru_backward.default")
def _gru_backward(
    context: Context,
    gradient: Value,
    to_hidden: Value,
    weight: Value,
    kept: Sequence[Value],
    mask: Value | None,
    reverse: bool,
) -> Result:
    names = ("before", "reset", "update", "candidate", "recurrent")

    def step(body: GraphBuilder, at: Values) -> Values:
        total = body.op("Add", at["gradient"], at["to_hidden"])
        counted = _counted(body, at, total)
        gap = body.op("Sub", at["before"], at["candidate"])
        candidate = _product(
            body, counted, _rest(body, at["update"]), _slope_of_tanh(body, at["candidate"])
        )
        product = body.op("Mul", candidate, at["reset"])
        gates = [
            _product(body, product, at["recurrent"], _rest(body, at["reset"])),
            _through_sigmoid(body, counted, gap, at["update"]),
            product,
        ]
        recurrent = body.op("Concat", *gates, axis=1)
        passed = body.op("Mul", counted, at["update"])
        before = body.op("Gemm", recurrent, weight.name, passed)
        return {
            "to_hidden": _plus_passed_by(body, before, total, counted),
            "to_recurrent": recurrent,
            "to_candidate": candidate,
        }

    sequences = {"gradient": gradient, **dict(zip(names, kept, strict=True)), "mask": mask}
    results = ("to_recurrent", "to_candidate")
    return _scan(context, step, {"to_hidden": to_hidden}, sequences, results, not reverse)


@translates("headwater::rnn.default")
def _rnn(
    context: Context,
    projected: Value,
    hidden: Value,
    weight: Value,
    mask: Value | None,
    rectified: bool,
    reverse: bool,
) -> Result:
    def step(body: GraphBuilder, at: Values) -> Values:
        total = body.op("Gemm", at["hidden"], weight.name, at["projected"], transB=1)
        output = body.op("Relu" if rectified else "Tanh", total)
        output = _held(body, at, output, at["hidden"])
        return {"hidden": output, "hiddens": output}

    sequences = {"projected": projected, "mask": mask}
    return _scan(context, step, {"hidden": hidden}, sequences, ("hiddens",), reverse)


@translates("headwater::rnn_backward.default")
def _rnn_backward(
    context: Context,
    gradient: Value,
    to_hidden: Value,
    weight: Value,
    hiddens: Value,
    mask: Value | None,
    rectified: bool,
    reverse: bool,
) -> Result:
    def step(body: GraphBuilder, at: Values) -> Values:
        total = body.op("Add", at["gradient"], at["to_hidden"])
        counted = _counted(body, at, total)
        hidden = at["hidden"]
        slope = body.op("Sign", hidden) if rectified else _slope_of_tanh(body, hidden)
        inner = body.op("Mul", counted, slope)
        before = body.op("MatMul", inner, weight.name)
        return {
            "to_hidden": _plus_passed_by(body, before, total, counted),
            "to_projected": inner,
        }

    states = {"to_hidden": to_hidden}
    sequences = {"gradient": gradient, "hidden": hiddens, "mask": mask}
    return _scan(context, step, states, sequences, ("to_projected",), not reverse)


def _held(body: GraphBuilder, at: Values, new: str, old: str) -> str:
    """The new state, or the old one where the step is masked."""
    if "mask" not in at:
        return new
    kept = body.op("Mul", _rest(body, at["mask"]), old)
    return body.op("Add", body.op("Mul", at["mask"], new), kept)


def _counted(body: GraphBuilder, at: Values, total: str) -> str:
    """The part of a gradient that goes through the step."""
    return body.op("Mul", at["mask"], total) if "mask" in at else total


def _plus_passed_by(body: GraphBuilder, gradient: str, total: str, counted: str) -> str:
    """With the part that passes the step by, where the step is masked."""
    if counted == total:
        return gradient
    return body.op("Add", gradient, body.op("Sub", total, counted))


def _product(body: GraphBuilder, *factors: str) -> str:
    return reduce(lambda left, right: body.op("Mul", left, right), factors)


def _rest(body: GraphBuilder, share: str) -> str:
    return body.op("Sub", body.scalar(1, torch.float32), share)


def _slope_of_tanh(body: GraphBuilder, value: str) -> str:
    return _rest(body, body.op("Mul", value, value))


def _through_sigmoid(body: GraphBuilder, gradient: str, factor: str, gate: str) -> str:
    """From the gradient of `factor * gate` to that of what the gate is the sigmoid of."""
    return _product(body, gradient, factor, gate, _rest(body, gate))


def _scan(
    context: Context,
    step: Step,
    states: Mapping[str, Value],
    sequences: Mapping[str, Value | None],
    results: Sequence[str],
    reverse: bool,
) -> tuple[str, ...]:
    """Run `step` along the first axis: the stacked `results`, then the last states.

    `step(body, values)` adds the nodes of one step. It is given the names of the states and of one
    slice of each sequence, and returns those of the new states and of a slice of each result. What
    nothing reads is not kept. One more sequence is the clock: a constant, by whose length a device
    knows the number of steps beforehand.
    """
    body = context.within()
    given = {name: value.name for name, value in sequences.items() if value is not None}
    inputs = {name: body.name() for name in (*states, *given)}
    found = step(body, dict(inputs))
    read = {user.args[1] for user in context.node.users}
    wanted = [name for index, name in enumerate(results) if index in read]
    graph = body.graph(
        "step",
        [*map(_slice, inputs.values()), _tick(body.name())],
        [(found[name], _slice(body.name("o"))) for name in (*states, *wanted)],
    )
    clock = context.constant(np.zeros(int(context.result.shape[0]), np.uint8))
    count = len(given) + 1
    outputs = context.ops(
        "Scan", len(states) + len(wanted), *(state.name for state in states.values()),
        *given.values(), clock, body=graph, num_scan_inputs=count,
        scan_input_directions=[int(reverse)] * count,
        **({"scan_output_directions": [int(reverse)] * len(wanted)} if wanted else {}),
    )  # fmt: skip
    stacked = dict(zip(wanted, outputs[len(states) :], strict=True))
    return *(stacked.get(name, "") for name in results), *outputs[: len(states)]


def _slice(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(torch.float32), None)


def _tick(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.UINT8, [])
