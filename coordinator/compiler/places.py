"""Where in the author's code an operator or an error comes from, for messages.

While a model is traced, each operator gets the module, loss or metric that called it
(`nn_module_stack`) and the line (`stack_trace`): two fields that torch hands on when it rewrites a
graph. An operator of the backward pass gets those of the operator whose gradient it computes; one
of the optimizer has none, since no line of the author's called it.
"""

import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from headwater.errors import CompileError

_TORCH = str(Path(torch.__file__).parent)
_COMPILER = str(Path(__file__).parent)
_PROJECT = str(Path(__file__).parents[1])
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_CALLERS = ("step.py", "trace.py")
"""Modules of ours that call the author's code: beyond them lies who compiles, not what."""

_NOTE = "called for "

_PART: ContextVar[str] = ContextVar("part", default="")


def place(node: fx.Node) -> str:
    """Where in the author's model an operator sits."""
    part, line = part_of_node(node) or "the step", node.meta.get("stack_trace")
    return f"in {part} at {line}" if line else f"in {part}"


def author_line(error: BaseException) -> str:
    """` at FILE:LINE`: the innermost frame outside of torch and this project, or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_authors_file(frame.filename):
            return f" at {frame.filename}:{frame.lineno}"
    return ""


def defined(function: Callable[..., Any]) -> str:
    """` (FILE:LINE)` where a function of the author's is written, or nothing."""
    code = getattr(function, "__code__", None)
    if code is None or not is_authors_file(code.co_filename):
        return ""
    return f" ({code.co_filename}:{code.co_firstlineno})"


@contextmanager
def part(name: str) -> Iterator[None]:
    """Within it, what is called belongs to this part of the step: the loss, a metric."""
    token = _PART.set(name)
    try:
        yield
    except Exception as error:
        error.add_note(_NOTE + name)
        raise
    finally:
        _PART.reset(token)


def part_of(error: BaseException) -> str:
    """` in PART` if an error left a `part`, or nothing."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)]
    return f" in {notes[0].removeprefix(_NOTE)}" if notes else ""


class Places(TorchFunctionMode):
    """While entered, operators that a trace records remember their part and line."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parts = [""]
        self._stamper = Stamper()
        self._handles: list[Any] = []
        self._backward: dict[Any, None] = {}
        self._gradient_of = ("", None)
        self._model = model
        self.failed = ""
        """The name of the torch function that raised last."""

    def __enter__(self) -> "Places":
        for path, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise CompileError(
                    f"module {path!r} is a torch.jit script, which cannot be traced: use the "
                    "Python module that it was made from"
                )
            name = f"module {path!r}" if path else "the model's own forward"
            self._handles += [
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._backward.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function as it is, then mark what it recorded and what its gradient will."""
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:
            self.failed = getattr(func, "__name__", "")
            raise
        line = calling_line()
        self._stamper.stamp(self._here, line)
        if torch.is_grad_enabled() and self._here:
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    self._watch(value.grad_fn, (self._here, line))
        return result

    @property
    def current(self) -> str:
        """` in PART`, with the line where a gradient is computed: where an error arose."""
        name, line = self._gradient_of
        if name:
            return f" in {_gradient(name)}" + (f" at {line}" if line else "")
        return f" in {self._here}" if self._here else ""

    @property
    def _here(self) -> str:
        return _PART.get() or self._parts[-1]

    def _enter(self, name: str) -> None:
        self._stamper.stamp(self._here)
        self._parts.append(name)

    def _leave(self) -> None:
        self._stamper.stamp(self._here)
        self._parts.pop()

    def _watch(self, last: Any, origin: tuple[str, Any]) -> None:
        """Let the autograd nodes that a function made mark the operators that they record."""
        waiting = [last]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._backward or hasattr(node, "variable"):
                continue
            self._backward[node] = None  # kept, so that it stays the same object
            node.register_prehook(lambda *_: self._begin_gradient(origin))
            node.register_hook(lambda *_: self._end_gradient(origin))
            waiting += [following for following, _ in node.next_functions]

    def _begin_gradient(self, origin: tuple[str, Any]) -> None:
        self._stamper.stamp("")
        self._gradient_of = origin

    def _end_gradient(self, origin: tuple[str, Any]) -> None:
        self._stamper.stamp(_gradient(origin[0]), origin[1])
        self._gradient_of = ("", None)


class Stamper:
    """Marks the nodes that a trace added since the last time."""

    def __init__(self) -> None:
        self.last: fx.Node | None = None

    def stamp(self, part: str, line: str | None = None) -> None:
        """Give the new nodes their part and line; neither where that is empty."""
        proxy = get_proxy_mode()
        if proxy is None:
            return
        graph = proxy.tracer.graph
        node = self.last.next if self.last is not None else next(iter(graph.nodes), graph._root)
        while node is not graph._root:
            if part:
                node.meta["nn_module_stack"] = {part: (part, "")}
            if line:
                node.meta["stack_trace"] = line
            self.last, node = node, node.next


def calling_line() -> str | None:
    """`FILE:LINE` of the author's frame that is calling, if one is."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_COMPILER) and file.endswith(_CALLERS):
            return None
        if is_authors_file(file):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def part_of_node(node: fx.Node) -> str:
    """The part of the model that a node of a trace belongs to, or nothing."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _gradient(name: str) -> str:
    return f"the gradient of {name}"


def is_authors_file(filename: str) -> bool:
    """Whether a file belongs neither to torch, this project nor the standard library."""
    if filename.startswith((_TORCH, _PROJECT, "<")):
        return False
    return not filename.startswith(_STANDARD_LIBRARY) or "site-packages" in filename
