"""The option `where=`: a condition over columns, parsed, never evaluated as code."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headwater.errors import UsageError, require

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "column names, numbers, quoted text, == != < <= > >=, in (…), and, or, not, parentheses"


@dataclass(frozen=True)
class Condition:
    """A condition as a pyarrow expression, and the columns that it reads."""

    text: str
    columns: tuple[str, ...]
    expression: Any


def parse_condition(text: str) -> Condition:
    """Parse for example `label >= 3 and split == 'train'`.

    A row is taken only if the condition is true: a comparison with a missing value is neither
    true nor false, as in SQL.

    Raises:
        UsageError: the text is no such condition; says which part and what is allowed.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"where={text}: not a condition ({error}); allowed: {_ALLOWED}") from error
    reader = _Reader(text)
    expression = reader.condition(tree.body)
    return Condition(text, tuple(dict.fromkeys(reader.columns)), expression)


class _Reader:
    def __init__(self, text: str) -> None:
        self.columns: list[str] = []
        self._text = text
        self._compute = require("pyarrow.compute", extra="parquet", purpose="filter Parquet files")

    def condition(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            result = self.condition(node.values[0])
            for value in node.values[1:]:
                result = join(result, self.condition(value))
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        raise self._refused(node)

    def _comparison(self, node: ast.Compare) -> Any:
        result = None
        left = node.left
        for comparison, right in zip(node.ops, node.comparators, strict=True):
            part = self._pair(node, left, comparison, right)
            result = part if result is None else result & part
            left = right
        return result

    def _pair(self, node: ast.Compare, left: ast.expr, how: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(how, ast.In | ast.NotIn) and isinstance(left, ast.Name):
            if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
                raise self._refused(node)
            member = self._column(left).isin([self._constant(item) for item in right.elts])
            # isin says false for a missing value, so that its negation would take the row.
            present = self._compute.field(left.id).is_valid()
            return member if isinstance(how, ast.In) else ~member & present
        compare = _COMPARISONS.get(type(how))
        if compare is None or not (isinstance(left, ast.Name) or isinstance(right, ast.Name)):
            raise self._refused(node)
        return compare(self._operand(left), self._operand(right))

    def _operand(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._column(node)
        return self._compute.scalar(self._constant(node))

    def _column(self, node: ast.Name) -> Any:
        self.columns.append(node.id)
        return self._compute.field(node.id)

    def _constant(self, node: ast.expr) -> int | float | str | bool:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, bool | str) and sign == 1:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
            return sign * value
        raise self._refused(node)

    def _refused(self, node: ast.expr) -> UsageError:
        piece = ast.get_source_segment(self._text.strip(), node) or ast.unparse(node)
        return UsageError(f"where={self._text}: {piece!r} is not allowed; allowed: {_ALLOWED}")
