"""Watches what a trace decides about the batch size, and refuses what other batches would change.

A plan is traced once and then run with any batch, the last and smaller one of a data set included.
So nothing may fix the batch size, and no `if` of the author's may go another way for another batch.
"""

import sys
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from coordinator.compiler.places import calling_line
from headwater.errors import CompileError

_OTHER_SIZES = frozenset(range(2, 130)) | {2**n + d for n in range(8, 18) for d in (-1, 0, 1)}
_TORCH = str(Path(torch.__file__).parent)
_SYMBOLS = (f"{_TORCH}/__init__.py", f"{_TORCH}/fx/experimental/")
"""Where torch turns a symbolic comparison into True or False, called by whoever compares."""

_INSTEAD = (
    "a plan runs with any batch size, and the last batch of a data set is smaller: use x.shape[0] "
    "only in shapes, -1 in reshapes, and torch functions over dimension 0 in place of a loop"
)


class BatchSizes(ShapeEnv):
    """Symbolic sizes whose decisions are recorded; reading values of tensors is refused at once."""

    def __init__(self) -> None:
        super().__init__(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
        self._decided: dict[Any, tuple[bool, str | None]] = {}
        self._fixed_at: str | None = None

    def evaluate_expr(self, orig_expr: Any, *arguments: Any, **named: Any) -> Any:
        """Decide as torch does, and remember whose line asked."""
        is_new = orig_expr not in self._decided and bool(getattr(orig_expr, "free_symbols", None))
        known = len(self.replacements)
        result = super().evaluate_expr(orig_expr, *arguments, **named)
        if is_new:
            line = calling_line()
            is_authors = result in (sympy.true, sympy.false) and _asked_by_author()
            self._decided[orig_expr] = (bool(result), line) if is_authors else (True, None)
            if len(self.replacements) > known and self._fixed_at is None:
                self._fixed_at = line
        return result

    def check(self, is_fixed: bool) -> None:
        """Refuse a trace that holds for some batch sizes only.

        Raises:
            CompileError: with the line that compared or fixed the batch size.
        """
        for expression, (result, line) in self._decided.items():
            if line and _depends_on_size(expression, result):
                raise CompileError(
                    f"the model or loss compares the batch size at {line}, and would go another "
                    f"way with another batch: {_INSTEAD}"
                )
        if is_fixed:
            where = f" at {self._fixed_at}" if self._fixed_at else ""
            raise CompileError(
                f"the model or loss fixes the batch size{where} (a comparison, a loop or int() of "
                f"a batch dimension): {_INSTEAD}"
            )


def _depends_on_size(expression: Any, result: bool) -> bool:
    """Whether an equation may hold for one size alone, or another comparison changes at some.

    What a batch of one decides is left to the parity gate, which runs one: libraries ask for it
    before they expand a tensor, which changes nothing.
    """
    if any(expression.has(kind) for kind in (sympy.Eq, sympy.Ne)):
        (symbol, *others) = expression.free_symbols
        return bool(others) or expression not in (sympy.Eq(symbol, 1), sympy.Ne(symbol, 1))
    named = {abs(int(number)) + d for number in expression.atoms(sympy.Integer) for d in (-1, 0, 1)}
    decided = sympy.lambdify(list(expression.free_symbols), expression, modules="sympy")
    symbols = len(expression.free_symbols)
    sizes = sorted(size for size in _OTHER_SIZES | named if size > 1)
    return any(bool(decided(*[size] * symbols)) is not result for size in sizes)


def _asked_by_author() -> bool:
    """Whether a line outside of torch compared, rather than a torch function that it called.

    Python's truth test enters torch through `SymBool.__bool__`; kernels ask the symbol itself.
    """
    frame, inner = sys._getframe(2), None
    while frame is not None and frame.f_code.co_filename.startswith(_SYMBOLS):
        frame, inner = frame.f_back, frame  # type: ignore[assignment]
    if frame is None or inner is None or inner.f_code.co_filename != _SYMBOLS[0]:
        return False
    return not frame.f_code.co_filename.startswith((_TORCH, "<"))
