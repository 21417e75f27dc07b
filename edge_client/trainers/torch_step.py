"""One step of a plan in torch, ready to run on named values."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from edge_client.trainers import Precision
from edge_client.trainers.torch_aten import load_graph
from headwater.aten_json import read_graph
from headwater.errors import DataError, PlanError

_METRIC = "m."


class TorchStep:
    """A checked graph as a function of named tensors.

    It writes the inputs in `lent`, and no others. `compiled` runs it through torch.compile, which
    fuses kernels: for the batch size of the first call alone, since compiling takes long.

    Raises:
        PlanError: the graph is damaged, not allowed, or too new for this torch.
    """

    def __init__(
        self,
        data: bytes,
        device: torch.device,
        *,
        lent: Collection[str] = (),
        compiled: bool = False,
    ) -> None:
        graph = read_graph(data)
        self.inputs = graph.inputs
        self.outputs = tuple(name for name, _ in graph.outputs)
        self.is_pointwise, self.is_compiled = graph.is_pointwise, compiled
        self._plain = load_graph(graph, device, lent)
        self._compiled: Callable[..., Any] = self._plain
        if compiled:
            self._compiled = torch.compile(self._plain, dynamic=False)
        self._compiled_size: int | None = None

    def __call__(
        self, values: Mapping[str, torch.Tensor], size: int = 1
    ) -> dict[str, torch.Tensor]:
        """Outputs by name, for a batch of `size`; values that the step does not take are ignored.

        Raises:
            PlanError: a value is missing, or an output is no tensor.
        """
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise PlanError(
                f"the plan's torch step asks for {missing[0]!r:.80}: the manifest does not name it"
            )
        self._compiled_size = self._compiled_size or size
        run = self._compiled if size == self._compiled_size else self._plain
        results = run(*(values[name] for name in self.inputs))
        for name, result in zip(self.outputs, results, strict=True):
            if not isinstance(result, torch.Tensor):
                raise PlanError(f"the plan's torch step gives a {type(result).__name__} as {name}")
        # no plan computes in bfloat16 by itself, so autocast left it
        return {
            name: result.float() if result.dtype == torch.bfloat16 else result
            for name, result in zip(self.outputs, results, strict=True)
        }


class Figures:
    """Loss and metrics of a step: on their way from the device until they are read.

    On a GPU what the device does after them goes on while they are read.
    """

    def __init__(self, figures: Mapping[str, torch.Tensor]) -> None:
        self._names = list(figures)
        self._values = torch.stack([value.double() for value in figures.values()])
        self._copied: torch.cuda.Event | None = None
        if self._values.is_cuda:
            host = torch.empty(self._values.shape, dtype=torch.float64, pin_memory=True)
            stream = torch.cuda.current_stream(self._values.device)
            self._values = host.copy_(self._values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)

    def read(self) -> dict[str, float]:
        """The numbers, under the names that people use."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers = self._values.tolist()
        return {n.removeprefix(_METRIC): v for n, v in zip(self._names, numbers, strict=True)}


def figures_of(results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss and metrics among a step's results.

    Raises:
        PlanError: one of them is not a single number.
    """
    found = {n: v.detach() for n, v in results.items() if n == "loss" or n.startswith(_METRIC)}
    for name, value in found.items():
        if value.dim():
            shape = tuple(value.shape)
            raise PlanError(f"the plan's torch step gives {name!r:.80} of shape {shape}, no number")
    return found


@contextmanager
def kernels(precision: Precision, device: torch.device) -> Iterator[None]:
    """Repeatable convolutions on GPUs, in full float32 at that precision; no effect on a CPU."""
    # some processors would round float32 products too
    tf32 = precision != "float32" and device.type == "cuda"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turns what torch raises in a step into errors of ours."""
    try:
        yield
    except (PlanError, DataError):
        raise
    except torch.OutOfMemoryError as error:
        raise PlanError(
            "the step does not fit this device's memory: use a smaller batch or a larger device "
            f"({_first_line(error)})"
        ) from error
    except IndexError as error:
        raise DataError(
            f"a value of the batch is out of range for the model ({_first_line(error)})"
        ) from error
    except Exception as error:
        raise PlanError(
            f"the plan's torch step failed in torch {torch.__version__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
