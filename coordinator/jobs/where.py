"""Which clients may take part: a condition over tags and the device profile.

    site == 'north' and memory_gib >= 2
    runtime in ['torch', 'onnxruntime'] and not (cores < 4 or channel == 'canary')

The text is parsed with Python's grammar, checked against an allow-list of node types, and walked;
nothing is ever evaluated as code. A comparison that names what a client does not report is false.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.errors import JobFileError

Attribute = str | float | bool | list[str]
Decision = tuple[bool, str]

MAXIMUM_CHARACTERS = 2_000
MAXIMUM_DEPTH = 40

_ALLOWED = (
    "allowed are names, texts, numbers, True and False, lists after in, "
    "== != < <= > >= in not in, and or not, and parentheses"
)
_SIGNS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda item, group: item in group,
    "not in": lambda item, group: item not in group,
}


@dataclass(frozen=True)
class Where:
    """A checked condition. An empty text holds for every client."""

    text: str
    _tree: ast.expr | None

    def matches(self, attributes: Mapping[str, Attribute]) -> Decision:
        """Whether the condition holds for a client, and why not: `memory_gib is 1.5, not >= 2`.

        The reason is empty where it holds. Never raises, whatever the attributes are.
        """
        return (True, "") if self._tree is None else _decide(self._tree, attributes)


def parse_where(text: str) -> Where:
    """Check a condition.

    Raises:
        JobFileError: with the column and what is allowed.
    """
    flat = " ".join(text.splitlines())
    stripped = flat.strip()
    if not stripped:
        return Where(text, None)
    if len(flat) > MAXIMUM_CHARACTERS:
        raise JobFileError(f"at most {MAXIMUM_CHARACTERS:,} characters, not {len(flat):,}")
    margin = len(flat) - len(flat.lstrip())
    tree = _parse(stripped, margin)
    _Check(stripped, margin).condition(tree, 0)
    return Where(text, tree)


def _parse(text: str, margin: int) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        column = margin + (error.offset or 1)
        raise JobFileError(f"column {column}: {error.msg}; {_ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise JobFileError(f"cannot be parsed ({error}); {_ALLOWED}") from None
    end = len(text.encode()[: tree.end_col_offset].decode(errors="replace"))
    if "#" in text[end:]:
        raise JobFileError(f"column {margin + text.index('#', end) + 1}: no comments; {_ALLOWED}")
    return tree


@dataclass(frozen=True)
class _Check:
    """The allow-list of node types."""

    text: str
    margin: int

    def condition(self, node: ast.expr, depth: int) -> None:
        """What is true or false: and, or, not, a comparison, a name, True and False."""
        if depth > MAXIMUM_DEPTH:
            self.refuse(node, f"nested more than {MAXIMUM_DEPTH} deep")
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    self.condition(value, depth + 1)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.condition(operand, depth + 1)
            case ast.Compare(left=left, ops=signs, comparators=rights):
                self.value(left)
                for sign, right in zip(signs, rights, strict=True):
                    self.comparison(sign, right)
            case ast.Name():
                self.value(node)
            case ast.Constant(value=bool()):
                pass
            case _:
                self.refuse(node, f"{self.source(node)} is neither true nor false")

    def comparison(self, sign: ast.cmpop, right: ast.expr) -> None:
        """The right side of one comparison."""
        if type(sign) not in _SIGNS:
            self.refuse(right, "is and is not do not compare values: use == and !=")
        if not isinstance(sign, ast.In | ast.NotIn):
            self.value(right)
        elif isinstance(right, ast.List | ast.Tuple):
            for item in right.elts:
                self.value(item, names=False)
        elif not isinstance(right, ast.Name):
            self.refuse(right, f"{self.source(right)} after in must be a list or a name")

    def value(self, node: ast.expr, names: bool = True) -> None:
        """A name, a text, a number, True or False."""
        match node:
            case ast.Name(id="true" | "false"):
                self.refuse(node, f"write {self.source(node).capitalize()}")
            case ast.Name() if names:
                pass
            case ast.Constant(value=str() | bool() | int() | float()):
                pass
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=number)) if (
                isinstance(number, int | float) and not isinstance(number, bool)
            ):
                pass
            case _:
                self.refuse(node, f"{self.source(node)} is not allowed here")

    def source(self, node: ast.expr) -> str:
        """The text of a node, shortened."""
        text = ast.get_source_segment(self.text, node) or ""
        return text if len(text) <= 40 else text[:37] + "..."

    def refuse(self, node: ast.expr, message: str) -> None:
        """Raise the error with the column of the node."""
        before = self.text.encode()[: node.col_offset].decode(errors="replace")
        column = self.margin + len(before) + 1
        raise JobFileError(f"column {column}: {message}; {_ALLOWED}")


def _decide(node: ast.expr, attributes: Mapping[str, Attribute]) -> Decision:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            decisions = (_decide(value, attributes) for value in values)
            return next((one for one in decisions if not one[0]), (True, ""))
        case ast.BoolOp(values=values):
            reasons = []
            for value in values:
                holds, reason = _decide(value, attributes)
                if holds:
                    return True, ""
                reasons.append(reason)
            return False, " and ".join(reasons)
        case ast.UnaryOp(operand=operand):
            return _negation(operand, attributes)
        case ast.Compare():
            return _chain(node, attributes)
        case ast.Name(id=name):
            return _flag(name, attributes)
        case _:
            holds = bool(ast.literal_eval(node))
            return holds, "" if holds else "the condition says False"


def _negation(operand: ast.expr, attributes: Mapping[str, Attribute]) -> Decision:
    holds, _ = _decide(operand, attributes)
    return (False, f"{ast.unparse(operand)} holds") if holds else (True, "")


def _flag(name: str, attributes: Mapping[str, Attribute]) -> Decision:
    if name not in attributes:
        return False, f"{name} is not reported"
    holds = attributes[name] is True
    return holds, "" if holds else f"{name} is {attributes[name]!r}, not True"


def _chain(node: ast.Compare, attributes: Mapping[str, Attribute]) -> Decision:
    """`a < b < c` is `a < b and b < c`."""
    sides = [node.left, *node.comparators]
    for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
        holds, reason = _compare(left, _SIGNS[type(sign)], right, attributes)
        if not holds:
            return False, reason
    return True, ""


def _compare(
    left: ast.expr, sign: str, right: ast.expr, attributes: Mapping[str, Attribute]
) -> Decision:
    for side in (left, right):
        if isinstance(side, ast.Name) and side.id not in attributes:
            return False, f"{side.id} is not reported"
    one, other = _operand(left, attributes), _operand(right, attributes)
    if sign in ("in", "not in") and isinstance(other, str | int | float):
        return False, f"{ast.unparse(right)} is {other!r}, not a list"
    try:
        holds = bool(_COMPARE[sign](one, other))
    except TypeError:
        return False, f"{_side(left, one)} cannot be compared by {sign} with {_side(right, other)}"
    return holds, "" if holds else _reason(left, one, sign, right, other)


def _operand(node: ast.expr, attributes: Mapping[str, Attribute]) -> Any:
    return attributes[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def _side(node: ast.expr, value: Any) -> str:
    return f"{node.id} ({value!r})" if isinstance(node, ast.Name) else repr(value)


def _reason(left: ast.expr, one: Any, sign: str, right: ast.expr, other: Any) -> str:
    if isinstance(right, ast.Name) and not isinstance(left, ast.Name) and sign in _MIRRORED:
        return f"{right.id} is {other!r}, not {_MIRRORED[sign]} {one!r}"
    subject = f"{left.id} is {one!r}" if isinstance(left, ast.Name) else repr(one)
    verb = "which is in" if sign == "not in" else f"not {sign}"
    return f"{subject}, {verb} {_side(right, other)}"
