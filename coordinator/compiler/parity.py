"""The gate before a plan leaves the author's machine: its graphs compute what eager torch does.

Three training steps run on random data, from the states that eager float32 torch passes through.
At each state the graphs' results are held against eager torch in float64, and so are those of eager
torch in float32. A graph may be `FACTOR` times as far from float64 as float32 torch is, or `FLOOR`
(some units in the last place of float32) where that is more.

What is compared, and why so:
- Every step starts from the same state. Runs that drift apart prove nothing: networks with ReLU or
  max-pool are chaotic in any float32.
- Gradients, buffers, outputs and the loss are compared directly. A distance is the largest
  difference in a tensor over the tensor's largest value, or over a thousandth of its group's where
  that is more: a gradient that is zero in theory (a key's bias in attention) is noise everywhere.
- The optimizer is compared on equal gradients, over consecutive steps, against torch.optim, since
  Adam divides gradients by their own size and so turns such noise into full steps. One gradient in
  each tensor is exactly zero, where a lost epsilon becomes 0/0. Anchors and corrections are random,
  clipping is torch's own, and the first gradients are large enough to be clipped.
- The whole training step is compared where gradients stand clear of the noise, with a float64 step
  on float64 gradients: a bias that starts at zero has, after one step, the relative error of its
  gradient.
- The torch form runs as a device runs it: the forward pass under autograd, then the optimizer over
  whole vectors of parameters.

A kink (the sign of a value near zero, the larger of two equal values) can flip by chance; a wrong
graph fails always. So the gate passes if one of `ATTEMPTS` draws of data passes, but never if a
result is not finite where torch's is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coordinator.compiler import step as steps
from coordinator.compiler.advice import advice
from coordinator.compiler.options import StepOptions
from coordinator.compiler.own_gradients import functions_with_own_gradient
from coordinator.compiler.places import author_line
from coordinator.compiler.state import ModelState
from coordinator.compiler.step import SEED, Recipe
from coordinator.compiler.torch_form import TorchForm
from coordinator.compiler.trace import TracedStep
from coordinator.compiler.twin import Arrays, Twin
from headwater.batch import Array, Batch
from headwater.errors import CompileError, PlanError
from headwater.graph_runtime import open_session, run_session
from headwater.manifest import GraphPort
from headwater.values import batch_values

FACTOR = 10.0
FLOOR = 2e-6
ATTEMPTS = 3
BATCH_SIZES = (4, 3, 1)
"""At most; the last is the smallest that a data set can end with. The first is small, since float64
takes most of the time that a convolution network compiles."""

_NEGLIGIBLE = 1e-3
_CLEAR_OF_NOISE = 1e-2
_SIGNIFICANT_DIGITS = 2
_ADDED_SCALE = 0.01
_CLIPPED = 4.0

Draw = Callable[[int, int], Batch]


@dataclass
class _Ledger:
    """Distances from float64, the largest by what was compared."""

    graphs: dict[str, float] = field(default_factory=dict)
    torch_float32: dict[str, float] = field(default_factory=dict)

    def record(self, what: str, found: Arrays, float32: Arrays, exact: Arrays) -> None:
        """Compare two results with the exact one."""
        for name in found:
            if not (np.isfinite(exact[name]).all() and np.isfinite(float32[name]).all()):
                raise CompileError(
                    f"eager torch itself gives values that are not finite in {name} on random "
                    "data: check the model, the loss and the learning rate"
                )
        for book, values in ((self.graphs, found), (self.torch_float32, float32)):
            book[what] = max(book.get(what, 0.0), _distance(values, exact, what))

    def worst(self) -> tuple[str, float, float] | None:
        """What lies beyond its limit, with its distance and the limit."""
        for what, distance in self.graphs.items():
            limit = max(FACTOR * self.torch_float32[what], FLOOR)
            if not distance <= limit:
                return what, distance, limit
        return None


class _Graphs:
    """The compiled members, each a function of named arrays."""

    def __init__(self, members: Mapping[str, bytes], ports: Mapping[str, GraphPort]) -> None:
        self._ports = ports
        self._members = members
        self._sessions: dict[str, Any] = {}

    def run(self, member: str, values: Mapping[str, Array]) -> Arrays:
        """Results by name. Graphs open here, after eager torch ran, whose errors are clearer."""
        ports = self._ports[member]
        if member not in self._sessions:
            self._sessions[member] = open_session(self._members[member], member, threads=1)
        feeds = {name: values[name] for name in ports.inputs}
        results = run_session(self._sessions[member], ports.outputs, feeds, member)
        return dict(zip(ports.outputs, results, strict=True))


def check_parity(
    recipe: Recipe,
    state: ModelState,
    members: Mapping[str, bytes],
    ports: Mapping[str, GraphPort],
    traces: Mapping[str, TracedStep],
    draw: Draw,
    batch_size: int,
    hyperparameters: Mapping[str, float],
) -> dict[str, float]:
    """Figures for the manifest: distances by quantity, steps, factor and floor.

    `traces` holds the torch form's steps by member. `draw(size, number)` gives a batch of random
    examples.

    Raises:
        CompileError: a graph does not load, fails, or lies beyond the limit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        graphs = _Graphs(members, ports)
        sizes = [min(size, batch_size) for size in BATCH_SIZES]
        for attempt in range(ATTEMPTS):
            form = TorchForm(recipe, traces)
            run = _Run(recipe, state, graphs, form, hyperparameters, _Double(threads))
            for index, size in enumerate(sizes):
                run.step(draw(size, attempt * len(sizes) + index), seed=attempt + index)
            run.evaluate(draw(sizes[0], attempt))
            worst = run.ledger.worst()
            if worst is None:
                return _figures(run)
        assert worst is not None
        raise CompileError(_refusal(*worst, run.own_gradients(draw(sizes[0], 0))))
    except PlanError as error:
        raise CompileError(f"the compiled graphs do not run: {error}") from error
    finally:
        torch.set_num_threads(threads)


class _Run:
    """One attempt: a trajectory of eager float32 torch, with every step compared."""

    def __init__(
        self,
        recipe: Recipe,
        state: ModelState,
        graphs: _Graphs,
        torch_form: TorchForm,
        hyperparameters: Mapping[str, float],
        float64: "_Double",
    ) -> None:
        self.recipe = replace(recipe, eager=True)
        self.graphs = graphs
        self.torch_form = torch_form
        self.hyperparameters = hyperparameters
        self.float64 = float64
        self.ledger = _Ledger()
        self.steps = 0
        self.state = {n: v.clone() for n, v in state.values.items()}
        self.added = _added(recipe, self.state)
        self.twins = [
            Twin(recipe, self.state, self.added, hyperparameters, dtype)
            for dtype in (torch.float32, torch.float64)
        ]
        self.slots: Arrays = {
            f"o.{slot}.{name}": np.full(tuple(parameter.shape), initial, np.float32)
            for slot, initial in recipe.optimizer.slots.items()
            for name, parameter in recipe.parameters.items()
        }
        self.slots |= {f"o.{name}": np.zeros((), np.float32) for name in recipe.optimizer.scalars}

    def step(self, batch: Batch, seed: int) -> None:
        """Compare one step from the present state and move on; a batch torch refuses is skipped."""
        data = _tensors(batch) | {SEED: torch.tensor(seed)}
        try:
            single = _numpy(steps.gradients(self.recipe, self._inputs(data)))
            with self.float64:
                double = _numpy(steps.gradients(self.recipe, _doubled(self._inputs(data))))
        except Exception as error:
            if batch.size == 1 and self.steps and isinstance(error, RuntimeError | ValueError):
                return  # BatchNorm takes no single example where each channel has one value
            raise _failed(error) from error
        if batch.size == 1 and self.steps and not np.isfinite(single["loss"]):
            return  # the mean over no example, where the loss ignores the only one
        feeds = self._feeds(data)
        self._compare("gradients", self.graphs.run("gradients.onnx", feeds), single, double)
        self._compare("torch", self.torch_form.gradients(feeds), single, double)
        self._compare_training(feeds, single, double)
        for name in double:
            if name.startswith("new."):
                self.state[name[4:]] = torch.from_numpy(np.asarray(single[name]))
        self.steps += 1

    def evaluate(self, batch: Batch) -> None:
        """Compare evaluation and prediction at the present state."""
        self.recipe.model.eval()
        data = _tensors(batch) | {SEED: torch.tensor(0)}
        try:
            single = _numpy(steps.evaluate(self.recipe, self._inputs(data)))
            with self.float64:
                double = _numpy(steps.evaluate(self.recipe, _doubled(self._inputs(data))))
        except Exception as error:
            raise _failed(error) from error
        self.recipe.model.train()
        feeds = self._feeds(data)
        found = self.graphs.run("evaluate.onnx", feeds) | self.graphs.run("predict.onnx", feeds)
        self._compare("evaluation", found, single, double)
        self._compare("torch_evaluation", self.torch_form.evaluate(feeds), single, double)

    def own_gradients(self, batch: Batch) -> list[str]:
        """The author's functions that bring a backward pass of their own."""
        data = _tensors(batch) | {SEED: torch.tensor(0)}
        inputs = self._inputs(data)
        for name in self.recipe.parameters:
            inputs[f"p.{name}"] = inputs[f"p.{name}"].detach().requires_grad_()
        results, _ = steps.forward(self.recipe, inputs)
        return functions_with_own_gradient(results["loss"])

    def _compare(self, what: str, found: Arrays, single: Arrays, double: Arrays) -> None:
        for kind, group in _groups(found).items():
            exact = {name: double[name] for name in group}
            self.ledger.record(f"{what}.{kind}", group, {n: single[n] for n in group}, exact)

    def _compare_training(self, feeds: Arrays, single: Arrays, double: Arrays) -> None:
        """The optimizer on equal gradients, in both forms, and the whole step."""
        gradients = {n: a for n, a in single.items() if n.startswith("g.")}
        trial = _trial(gradients, self.recipe.options, first=self.steps == 0)
        found = self.graphs.run("train.onnx", feeds)
        float32, _ = self.twins[0].after(gradients)
        exact, directions = self.twins[1].after(
            {n: a for n, a in double.items() if n.startswith("g.")}
        )
        clear = _clear(double, directions)
        self._compare("train", {n: found[n] for n in found if n in double}, single, double)
        self.ledger.record(
            "train.parameters",
            {n: np.where(clear[n], found[n], a) for n, a in exact.items()},
            {n: np.where(clear[n], float32[n], a) for n, a in exact.items()},
            exact,
        )
        applied = self.graphs.run("apply.onnx", {**feeds, **trial})
        by_vectors = self.torch_form.apply({**feeds, **trial})
        float32, exact = (twin.step(trial) for twin in self.twins)
        updated = {n: a for n, a in applied.items() if n.startswith("new.p.")}
        self.ledger.record("optimizer.parameters", updated, float32, exact)
        self.ledger.record("torch.parameters", by_vectors, float32, exact)
        self.slots = {n[4:]: a for n, a in applied.items() if n.startswith("new.o.")}
        for name, array in float32.items():
            self.state[name[4:]] = torch.from_numpy(array)

    def _inputs(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            **{f"p.{n[2:]}" if n[:2] == "f." else n: v for n, v in self.state.items()},
            **_owned(data),
        }

    def _feeds(self, data: Mapping[str, Tensor]) -> Arrays:
        scalars: Arrays = {
            f"h.{name}": np.array(value, np.float32) for name, value in self.hyperparameters.items()
        }
        tensors = _numpy({**self.state, **self.added, **data})
        return {**tensors, **self.slots, **scalars}


class _Double(TorchFunctionMode):
    """While entered, the author's code means float64 where it says float32, and takes `threads`:
    what the order of additions changes there is far below the digits that are kept.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads

    def __enter__(self) -> "_Double":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)
        torch.set_num_threads(self._threads_before)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function with its float32 arguments exchanged."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {name: _doubled_argument(value) for name, value in (kwargs or {}).items()}
        return func(*map(_doubled_argument, args), **kwargs)


def _doubled_argument(value: Any) -> Any:
    """float64 for float32; a tensor that the author keeps in an attribute is no parameter."""
    if value is torch.float32:
        return torch.float64
    if type(value) is Tensor and value.dtype == torch.float32 and not value.requires_grad:
        return value.double()
    return value


def _groups(found: Arrays) -> dict[str, Arrays]:
    """Results by kind, since a distance is relative to others of its kind."""
    groups: dict[str, Arrays] = {}
    kinds = {"g.": "gradients", "new.p.": "buffers", "m.": "metrics"}
    for name, array in found.items():
        prefix = next((p for p in kinds if name.startswith(p)), name)
        groups.setdefault(kinds.get(prefix, name), {})[name] = array
    return groups


def _distance(found: Arrays, exact: Arrays, what: str) -> float:
    sizes = {n: float(np.max(np.abs(a), initial=0.0)) for n, a in exact.items()}
    least = max(_NEGLIGIBLE * max(sizes.values(), default=0.0), 1e-30)
    worst = 0.0
    for name, array in found.items():
        wanted = np.asarray(exact[name], np.float64)
        if not np.isfinite(array).all():
            raise CompileError(
                f"the compiled graphs give values that are not finite in {name} ({what}) where "
                "eager torch does not"
            )
        if array.shape != wanted.shape:
            raise CompileError(f"the compiled graphs give {name} the shape {array.shape}, eager "
                               f"torch {wanted.shape}")  # fmt: skip
        gap = float(np.max(np.abs(array.astype(np.float64) - wanted), initial=0.0))
        worst = max(worst, gap / max(sizes[name], least))
    return worst


def _clear(double: Arrays, directions: Arrays) -> dict[str, Any]:
    """Which elements have a gradient well above rounding noise, and still have it when the step's
    other terms were added."""
    gradients = {f"new.p.{n[2:]}": a for n, a in double.items() if n.startswith("g.")}
    masks = [_above_noise(gradients), _above_noise(directions)]
    return {name: masks[0][name] & masks[1][name] for name in gradients}


def _above_noise(gradients: Arrays) -> dict[str, Any]:
    sizes = {name: np.abs(array) for name, array in gradients.items()}
    largest = max((float(size.max(initial=0.0)) for size in sizes.values()), default=0)
    return {name: size > _CLEAR_OF_NOISE * largest for name, size in sizes.items()}


def _added(recipe: Recipe, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random anchors near the weights, and random corrections."""
    draw = torch.Generator().manual_seed(0)
    noise = {
        name: _ADDED_SCALE * torch.randn(state[f"p.{name[2:]}"].shape, generator=draw)
        for name in recipe.added_names
    }
    return {n: v + state[f"p.{n[2:]}"] if n[0] == "a" else v for n, v in noise.items()}


def _trial(gradients: Arrays, options: StepOptions, *, first: bool) -> Arrays:
    """The gradients with one zero in each tensor; the first ones are large enough to be clipped."""
    flat = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in gradients.values()])
    limit, order = options.clip_norm or options.clip_value, 2 if options.clip_norm else np.inf
    size = float(np.linalg.norm(flat, order)) if limit and first else 0.0
    scale = _CLIPPED * limit / size if limit and size else 1.0
    return {name: _trial_of(array, scale) for name, array in gradients.items()}


def _trial_of(gradient: Array, scale: float) -> Array:
    scaled = np.asarray(gradient, np.float32) * np.float32(scale)
    scaled.reshape(-1)[:1] = 0
    return np.asarray(scaled)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(a)) for name, a in batch_values(batch).items()}


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, which a model may write without changing what the next run of it sees."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _doubled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.double() if v.is_floating_point() else v for n, v in tensors.items()}


def _numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _figures(run: _Run) -> dict[str, float]:
    figures = {"steps": float(run.steps), "factor": FACTOR, "floor": FLOOR}
    for what, distance in run.ledger.graphs.items():
        figures[f"graphs.{what}"] = _rounded(distance)
        figures[f"torch_float32.{what}"] = _rounded(run.ledger.torch_float32[what])
    return figures


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS - 1}e}")


def _failed(error: Exception) -> CompileError:
    """Words for an error of the author's code that its trace did not meet."""
    reason = str(error).strip().split("\n")[0][:300]
    hint = advice("checkpoint") if type(error).__name__ == "CheckpointError" else ""
    instead = f". Instead: {hint}" if hint else ""
    return CompileError(
        f"the model or loss fails on random data{author_line(error)}: {type(error).__name__}: "
        f"{reason}{instead}"
    )


def _refusal(what: str, distance: float, limit: float, own_gradients: list[str]) -> str:
    if own_gradients and what.startswith("torch."):
        names = ", ".join(map(repr, own_gradients))
        return (
            f"torch.autograd.Function {names} has a backward of its own, which is not the gradient "
            f"of its forward ({what} lies {distance:.1e} from it, the limit is {limit:.1e}): "
            f"devices differentiate the forward pass. Instead: {advice('own_gradient')}"
        )
    return (
        f"the compiled graphs do not compute what eager torch does: {what} lies {distance:.1e} "
        f"from float64 torch, the limit is {limit:.1e} ({FACTOR:g} times the distance of float32 "
        f"torch, or {FLOOR:g}). Please report the model; another form of the layer may help"
    )
