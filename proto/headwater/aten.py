"""A training step as a graph of ATen calls, free of torch: what a torch client runs.

Values are numbered: the inputs, then the constants, then one for each node in order. A node may
refer only to values before it, so there are no cycles. Nodes run in order, and may write what nodes
before them made, but neither inputs nor constants. A graph is checked when it is made, by the
compiler and by a device alike: every operator is in `headwater.aten_operators.OPERATORS`, and every
number is bounded. `headwater.aten_json` is its file form.
"""

from dataclasses import dataclass

from headwater.aten_nodes import Argument, AtenNode, Device, Reference, Symbol
from headwater.aten_operators import (
    DROPOUT_ARGUMENTS,
    GRADIENT_OPERATOR,
    MASK_OPERATOR,
    OPERATORS,
    POINTWISE_OPERATORS,
    WORDS,
)
from headwater.aten_writes import writes
from headwater.batch import Array
from headwater.errors import PlanError

MAXIMUM_NODES = 200_000
MAXIMUM_CONSTANT_BYTES = 2**20
"""All constants of a graph together. Weights are inputs, so constants are masks and positions."""
MAXIMUM_DEPTH = 4

DTYPES = frozenset("bool uint8 int8 int16 int32 int64 float16 float32 float64".split())  # noqa: SIM905
"""Names of dtypes that constants and arguments may have."""

SYMBOLS = {
    "dtype": DTYPES,
    "memory_format": frozenset({"contiguous_format", "preserve_format", "channels_last"}),
    "layout": frozenset({"strided"}),
}
"""The torch constants that an argument may be, by kind."""

_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True)
class AtenGraph:
    """A checked graph.

    Raises:
        PlanError: an operator is not allowed, a reference points forward, an input is written, or
            a limit is passed.
    """

    inputs: tuple[str, ...]
    constants: tuple[Array, ...]
    nodes: tuple[AtenNode, ...]
    outputs: tuple[tuple[str, Reference], ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether the step may run on parts of vectors, one after another."""
        return all(node.operator in POINTWISE_OPERATORS for node in self.nodes)

    def __post_init__(self) -> None:
        _check_names("inputs", self.inputs)
        _check_names("outputs", tuple(name for name, _ in self.outputs))
        _check_constants(self.constants)
        if len(self.nodes) > MAXIMUM_NODES:
            raise refused(f"it has {len(self.nodes)} nodes; the limit is {MAXIMUM_NODES}")
        first = len(self.inputs) + len(self.constants)
        for index, node in enumerate(self.nodes):
            _check_node(node, index, first + index)
        for index, value in writes(first, self.nodes):
            raise refused(
                f"node {index} ({self.nodes[index].operator}) writes value {value}, which the step "
                "was given: it may write only what it made"
            )
        for name, reference in self.outputs:
            _check_argument(reference, first + len(self.nodes), f"output {name!r}")


def refused(reason: str) -> PlanError:
    """The one error of a graph that is not accepted."""
    return PlanError(
        f"the plan's torch step is refused: {reason}. Compile the plan again with this version of "
        "headwater, or don't trust where it came from"
    )


def _check_names(where: str, names: tuple[str, ...]) -> None:
    if not all(isinstance(name, str) and 0 < len(name) <= 512 for name in names):
        raise refused(f"{where}: every name is a text of 1 to 512 characters")
    if len(set(names)) != len(names):
        raise refused(f"{where}: a name occurs twice")


def _check_constants(constants: tuple[Array, ...]) -> None:
    total = sum(array.nbytes for array in constants)
    if total > MAXIMUM_CONSTANT_BYTES:
        raise refused(f"its constants take {total} bytes; the limit is {MAXIMUM_CONSTANT_BYTES}")


def _check_node(node: AtenNode, index: int, value: int) -> None:
    if not isinstance(node.operator, str) or node.operator not in OPERATORS:
        raise refused(f"node {index} calls {node.operator!r:.80}, which is not an allowed operator")
    where = f"node {index} ({node.operator})"
    for argument in node.arguments:
        _check_argument(argument, value, where)
    _check_form(node, where)
    for name, argument in node.keywords.items():
        if not (name.isascii() and name.isidentifier()):
            raise refused(f"{where}: {name!r:.80} is no argument's name")
        _check_argument(argument, value, where)


def _check_form(node: AtenNode, where: str) -> None:
    """Operators whose arguments must be of one form."""
    arguments, keywords = node.arguments, node.keywords
    if node.operator == GRADIENT_OPERATOR and not (
        len(arguments) == 1 and isinstance(arguments[0], bool) and not keywords
    ):
        raise refused(f"{where}: it takes true or false")
    if node.operator == MASK_OPERATOR and not _is_mask_call(node):
        raise refused(f"{where}: it takes a seed, a site's number, a shape and a probability")
    place = DROPOUT_ARGUMENTS.get(node.operator)
    if place is None:
        return
    probabilities = [*arguments[place : place + 1]]
    probabilities += [keywords[name] for name in ("dropout", "dropout_p") if name in keywords]
    if any(isinstance(value, bool) or value != 0 for value in probabilities):
        raise refused(f"{where}: its dropout must be 0, since it would draw numbers of its own")


def _is_mask_call(node: AtenNode) -> bool:
    match node.arguments:
        case (Reference(), int() as site, tuple(), float() as probability):
            return site >= 0 and 0 < probability < 1 and not node.keywords
    return False


def _check_argument(argument: Argument, before: int, where: str, depth: int = 0) -> None:
    """Refuse what no compiler of ours writes; `before` bounds the references."""
    if depth > MAXIMUM_DEPTH:
        raise refused(f"{where}: lists are nested too deep")
    match argument:
        case tuple():
            for item in argument:
                _check_argument(item, before, where, depth + 1)
        case Reference(index):
            if not 0 <= index < before:
                raise refused(
                    f"{where}: it refers to value {index}, which is not computed before it"
                )
        case Symbol(kind, name):
            if name not in SYMBOLS.get(kind, ()):
                raise refused(f"{where}: {name!r:.40} is not an allowed {kind:.40}")
        case str():
            if argument not in WORDS:
                raise refused(f"{where}: {argument!r:.40} is not an allowed word")
        case int():
            if argument not in _INTEGERS:
                raise refused(f"{where}: an integer has more than 64 bits")
        case None | float() | Device():
            pass
        case _:
            raise refused(f"{where}: an argument is a {type(argument).__name__}")
