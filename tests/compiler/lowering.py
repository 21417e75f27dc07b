"""Runs a function of tensors through the compiler's lowering and onnxruntime."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from coordinator.compiler.decompose import decompose
from coordinator.compiler.decompositions import table
from coordinator.compiler.onnx_lowering import lower
from coordinator.compiler.rewrites import PortableFunctions
from coordinator.compiler.trace import TracedStep, trace_step
from headwater.batch import Array
from headwater.graph_runtime import open_session, run_session

Function = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

SEED = 77


def lowered(
    function: Function, examples: Mapping[str, Tensor], batched: list[str] | None = None
) -> TracedStep:
    step = _with_portable_functions(function, only_random=False)
    return decompose(trace_step(step, examples, batched or [], nn.Module()), table())


def _with_portable_functions(function: Function, only_random: bool) -> Function:
    def step(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with PortableFunctions(torch.tensor(SEED), only_random):
            return function(tensors)

    return step


def through_onnx(
    function: Function, examples: Mapping[str, Tensor], batched: list[str] | None = None
) -> dict[str, Array]:
    return _runner(function, examples, batched)(examples)


def _runner(
    function: Function, examples: Mapping[str, Tensor], batched: list[str] | None
) -> Callable[[Mapping[str, Tensor]], dict[str, Array]]:
    step = lowered(function, examples, batched)
    step = step.select(step.outputs)
    session = open_session(lower(step, "test").SerializeToString(), "test", threads=1)

    def run(values: Mapping[str, Tensor]) -> dict[str, Array]:
        feeds = {name: values[name].detach().numpy() for name in step.inputs}
        found = run_session(session, step.outputs, feeds, "test")
        return dict(zip(step.outputs, found, strict=True))

    return run


def assert_same(
    function: Function,
    examples: Mapping[str, Tensor],
    rtol: float = 1e-5,
    atol: float = 1e-6,
    batched: list[str] | None = None,
) -> None:
    """The lowering computes what eager torch does, dtype and shape included.

    With `batched` inputs, also for a smaller batch than was traced.
    """
    run = _runner(function, examples, batched)
    eager = _with_portable_functions(function, only_random=True)
    smaller = {n: v[:-1] if n in (batched or []) else v for n, v in examples.items()}
    for values in [examples, smaller] if batched else [examples]:
        found = run(values)
        for name, wanted in eager(values).items():
            exact = wanted.detach().numpy()
            assert found[name].dtype == exact.dtype, name
            assert found[name].shape == exact.shape, name
            if exact.dtype.kind == "f":
                np.testing.assert_allclose(
                    np.asarray(found[name], float), exact, rtol, atol, err_msg=name
                )
            else:
                np.testing.assert_array_equal(found[name], exact, err_msg=name)


def gradients_of(function: Callable[..., Tensor], *leaves: Tensor) -> Function:
    """The function's value and its gradients, weighted unevenly, as a step."""

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = [tensors[f"t{i}"] for i in range(len(tensors))]
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
            value = function(*inputs)
            weights = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape).cos()
            wanted = [t for t in inputs if t.requires_grad]
            found = torch.autograd.grad((value * weights).sum(), wanted)
        return {"value": value.detach()} | {f"g{i}": g for i, g in enumerate(found)}

    return step


def numbered(*tensors: Tensor) -> dict[str, Tensor]:
    return {f"t{i}": tensor for i, tensor in enumerate(tensors)}
