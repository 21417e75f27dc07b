"""Where in the author's code an operator or an error comes from, for messages.

While a model is traced, each operator gets the path of its module (`nn_module_stack`) and the line
that called it (`stack_trace`): two fields that torch hands on when it rewrites a graph. Operators
of the backward pass and the optimizer have no line: no line of the author's called them.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode

_TORCH = str(Path(torch.__file__).parent)
_COMPILER = str(Path(__file__).parent)
_PROJECT = str(Path(__file__).parents[1])
_CALLERS = ("step.py", "trace.py")
"""Modules of ours that call the author's code: beyond them lies who compiles, not what."""


def place(node: fx.Node) -> str:
    """Where in the author's model an operator sits."""
    path, line = _module_path(node), node.meta.get("stack_trace")
    module = f"in module {path!r}" if path else "in the model's own forward, the loss or a metric"
    return f"{module} at {line}" if line else module


def author_line(error: BaseException) -> str:
    """` at FILE:LINE`: the innermost frame outside of torch and this project, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_authors(frame.filename):
            return f" at {frame.filename}:{frame.lineno}"
    return ""


class Places(TorchFunctionMode):
    """While entered, operators that a trace records remember their module and line."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._paths = [""]
        self._stamper = _Stamper()
        self._handles: list[Any] = []
        self._model = model

    def __enter__(self) -> "Places":
        for path, module in self._model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(lambda *_, path=path: self._enter(path)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function as it is, then mark what it recorded."""
        result = func(*args, **(kwargs or {}))
        self._stamper.stamp(self._paths[-1], _calling_line())
        return result

    @property
    def current(self) -> str:
        """` in module 'PATH'`, where an error left the author's code, or nothing."""
        return f" in module {self._paths[-1]!r}" if self._paths[-1] else ""

    def _enter(self, path: str) -> None:
        self._stamper.stamp(self._paths[-1])
        self._paths.append(path)

    def _leave(self) -> None:
        self._stamper.stamp(self._paths.pop())


class PlaceKeepingInterpreter(fx.Interpreter):
    """Runs a graph under a tracer and hands each node's place to the nodes it becomes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._stamper = _Stamper()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and stamp what it became."""
        result = super().run_node(n)
        self._stamper.stamp(_module_path(n), n.meta.get("stack_trace"))
        return result


class _Stamper:
    """Marks the nodes that a trace added since the last time."""

    def __init__(self) -> None:
        self.last: fx.Node | None = None

    def stamp(self, path: str, line: str | None = None) -> None:
        proxy = get_proxy_mode()
        if proxy is None:
            return
        graph = proxy.tracer.graph
        node = self.last.next if self.last is not None else next(iter(graph.nodes), graph._root)
        while node is not graph._root:
            if path:
                node.meta["nn_module_stack"] = {path: (path, "")}
            if line:
                node.meta["stack_trace"] = line
            self.last, node = node, node.next


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _calling_line() -> str | None:
    """`FILE:LINE` of the author's frame that is calling, if one is."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if str(path.parent) == _COMPILER and path.name in _CALLERS:
            return None
        if _is_authors(frame.f_code.co_filename):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_authors(filename: str) -> bool:
    return not filename.startswith((_TORCH, _PROJECT, "<")) and "importlib" not in filename
