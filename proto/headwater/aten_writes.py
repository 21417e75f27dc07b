"""Which of the values that a torch step is given it would write in place.

A step runs its nodes in order, so it may write what it made itself: `relu_` on a convolution's
result, `copy_` into a part of a copied buffer. What it was given is the trainer's state and the
caller's batch, and its constants serve the next step too: those stay as they are. The check is
conservative: a result that may share memory with a value counts as that value.
"""

from collections.abc import Iterator, Sequence

from headwater.aten_nodes import Argument, AtenNode, Reference
from headwater.aten_operators import (
    IN_PLACE_OPERATORS,
    ITEM_OPERATOR,
    STATISTICS_OPERATORS,
    VIEW_OPERATORS,
)

_SHARING = IN_PLACE_OPERATORS | VIEW_OPERATORS | {ITEM_OPERATOR}
_STATISTICS = slice(3, 5)


def writes(given: int, nodes: Sequence[AtenNode]) -> Iterator[tuple[int, int]]:
    """`(node, value)`: each node that writes one of the first `given` values, as nodes refer to
    them by number.
    """
    owners: dict[int, frozenset[int]] = {value: frozenset({value}) for value in range(given)}
    for index, node in enumerate(nodes):
        keywords = tuple(node.keywords.values())
        first = _owners((*node.arguments[:1], *keywords), owners)
        if node.operator in STATISTICS_OPERATORS:
            written = _owners((*node.arguments[_STATISTICS], *keywords), owners)
        else:
            written = first if node.operator in IN_PLACE_OPERATORS else frozenset()
        for value in sorted(written):
            yield index, value
        if first and node.operator in _SHARING:
            owners[given + index] = first


def _owners(arguments: Sequence[Argument], owners: dict[int, frozenset[int]]) -> frozenset[int]:
    """The given values whose memory an argument may share."""
    found: frozenset[int] = frozenset()
    for argument in arguments:
        if isinstance(argument, Reference):
            found |= owners.get(argument.index, frozenset())
        elif isinstance(argument, tuple):
            found |= _owners(argument, owners)
    return found
