"""Steps on a GPU replayed as CUDA graphs, without the processor's part of them.

Launching the kernels of a small model takes a processor longer than the GPU computes: a graph holds
them all and is launched as one.
"""

import logging
from collections.abc import Callable, Hashable, Mapping

import torch

Named = dict[str, torch.Tensor]
Function = Callable[[Named], Named]
Capture = Callable[[Callable[[], Named]], tuple[Callable[[], None], Named] | None]
"""Records what a function does: how to do it again and the results that this writes, or None where
it cannot be recorded. It may do nothing yet."""

WARM_CALLS = 3
"""Calls that run as they are: libraries load and choose their kernels in them."""
_KEPT = 6
"""Graphs of one plan: full and last batches of training and of evaluation, and the optimizer."""

_log = logging.getLogger("headwater.client")


class Replays:
    """Runs functions of named values on a device, and replays those that are called often.

    A function must work on tensors that stay where they are, but for its values, and must not look
    at numbers. Off a GPU it runs as it is.
    """

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device = device
        self._kept: dict[Hashable, _Replayed] = {}
        self._capture = capture or (_cuda_graphs(device) if device.type == "cuda" else None)

    def run(
        self, key: Hashable, function: Function, values: Mapping[str, torch.Tensor | float]
    ) -> Named:
        """The function's results, which a later call with the key may write over.

        `values` are tensors of the host, and numbers. Calls with one `key` mean the same function,
        and values of the same shapes and dtypes; with the key None nothing is replayed.
        """
        kept = self._kept.get(key)
        if kept is None and self._capture and key is not None and len(self._kept) < _KEPT:
            kept = self._kept[key] = _Replayed(function, self._device, self._capture)
        if kept is not None:
            try:
                return kept(values)
            except BaseException:
                del self._kept[key]
                raise
        return function({name: _moved(value, self._device) for name, value in values.items()})


class _Replayed:
    """One function with places for its values on the device."""

    def __init__(self, function: Function, device: torch.device, capture: Capture) -> None:
        self._function = function
        self._device = device
        self._capture: Capture | None = capture
        self._calls = 0
        self._places: Named = {}
        self._numbers: dict[str, float] = {}
        self._replay: Callable[[], None] | None = None
        self._results: Named = {}

    def __call__(self, values: Mapping[str, torch.Tensor | float]) -> Named:
        for name, value in values.items():
            self._place(name, value)
        if self._replay is None:
            self._calls += 1
            if self._capture is None or self._calls <= WARM_CALLS:
                return self._function(self._places)
            captured = self._capture(lambda: self._function(self._places))
            if captured is None:
                self._capture = None
                return self._function(self._places)
            self._replay, self._results = captured
        self._replay()
        return self._results

    def _place(self, name: str, value: torch.Tensor | float) -> None:
        place = self._places.get(name)
        if place is None:
            self._places[name] = _moved(value, self._device, copy=True)
        elif isinstance(value, torch.Tensor):
            place.copy_(value)
        elif self._numbers[name] != value:
            place.fill_(value)
        if not isinstance(value, torch.Tensor):
            self._numbers[name] = value


def _moved(
    value: torch.Tensor | float, device: torch.device, *, copy: bool = False
) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=copy)
    dtype = torch.int64 if isinstance(value, int) else torch.float32
    return torch.tensor(value, dtype=dtype, device=device)


def _cuda_graphs(device: torch.device) -> Capture:
    """Captures CUDA graphs that share their memory, since one is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Named]) -> tuple[Callable[[], None], Named] | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile, as NCCL's do
            with (
                torch.cuda.device(device),
                torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
            ):
                results = run()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            _log.info("this step is launched kernel by kernel: it is no CUDA graph (%s)", reason)
            return None
        return graph.replay, results

    return capture
