"""The JSON of a torch step: exact round trips, and a reason for everything that is refused."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.aten import MAXIMUM_CONSTANT_BYTES, MAXIMUM_NODES, AtenGraph
from headwater.aten_json import MAXIMUM_BYTES, read_graph, write_graph
from headwater.aten_nodes import AtenNode, Device, Reference, Symbol
from headwater.aten_operators import OPERATORS
from headwater.errors import PlanError

A, B = Reference(0), Reference(1)


def document(**changes: Any) -> dict[str, Any]:
    """A valid graph of one product, with some keys changed."""
    valid: dict[str, Any] = {
        "schema": 1,
        "inputs": ["a", "b"],
        "constants": [],
        "nodes": [["aten.mm.default", [{"value": 0}, {"value": 1}], {}]],
        "outputs": [["c", 2]],
    }
    return valid | changes


def read(**changes: Any) -> AtenGraph:
    return read_graph(json.dumps(document(**changes)).encode())


def node(*arguments: Any, operator: str = "aten.mm.default", **keywords: Any) -> list[Any]:
    return [operator, list(arguments), keywords]


WRITES = "which the step was given: it may write only what it made"
VIEW = node({"value": 0}, 0, operator="aten.unsqueeze.default")
PARTS = node({"value": 0}, 2, operator="aten.chunk.default")
ITEM = node({"value": 2}, 0, operator="item")


def normalization(statistics: dict[str, int]) -> list[Any]:
    given = [{"value": 0}, None, None, statistics, None, True]
    return node(
        *given, {"float": "0x1p-3"}, {"float": "0x1p-9"}, True, operator="aten.batch_norm.default"
    )


def mask(site: Any = 1, probability: float = 0.5) -> list[Any]:
    chance = {"float": probability.hex()}
    return node({"value": 0}, site, [2, 3], chance, operator="random.keep_mask")


def attention(dropout: Any) -> list[Any]:
    chance = {"float": dropout.hex()} if isinstance(dropout, float) else dropout
    name = "aten.scaled_dot_product_attention.default"
    return node(*[{"value": 0}] * 3, None, chance, operator=name)


def constant(**changes: Any) -> dict[str, Any]:
    data = base64.b64encode(np.arange(6, dtype="<i8").tobytes()).decode()
    return {"dtype": "int64", "shape": [2, 3], "base64": data} | changes


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.sampled_from(["none", "tanh", "mean"]),
    st.sampled_from([A, B]),
    st.sampled_from(
        [Symbol("dtype", "float32"), Symbol("memory_format", "contiguous_format"), Device()]
    ),
)
arguments = st.one_of(scalars, st.lists(scalars).map(tuple))


@given(
    st.lists(arguments, max_size=5), st.dictionaries(st.sampled_from(["dim", "dtype"]), arguments)
)
def test_every_argument_survives_exactly(given_arguments: list[Any], keywords: Any) -> None:
    call = AtenNode("aten.add.Tensor", tuple(given_arguments), dict(sorted(keywords.items())))
    graph = AtenGraph(("a", "b"), (), (call,), (("c", Reference(2)),))

    data = write_graph(graph)
    back = read_graph(data)

    assert repr(back) == repr(graph)  # by text, since nan differs from itself
    assert write_graph(back) == data


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float64"])
def test_constants_survive_exactly(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = read_graph(write_graph(AtenGraph((), (array,), (), (("c", A),))))
    assert back.constants[0].dtype == array.dtype
    np.testing.assert_array_equal(back.constants[0], array)


def test_keywords_in_any_order_give_the_same_bytes() -> None:
    def bytes_of(keywords: dict[str, Any]) -> bytes:
        call = AtenNode("aten.sum.dim_IntList", (A, (0,)), keywords)
        return write_graph(AtenGraph(("a",), (), (call,), ()))

    assert bytes_of({"keepdim": True, "dtype": None}) == bytes_of({"dtype": None, "keepdim": True})


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.set_data.default",
        "aten.set_.source_Storage",
        "aten.resize_.default",
        "aten.unsqueeze_.default",
        "aten.detach_.default",
        "aten.native_batch_norm.default",
        "aten.dropout.default",
        "aten.empty.memory_format",
        "aten.as_strided.default",
        "aten.item.default",
        "aten.rand.default",
        "aten.mm.default.__class__",
        "aten.mm.__init__",
        "os.system",
        "builtins.eval",
        "operator.pow",
        "",
    ],
)
def test_an_operator_outside_the_set_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"node 0 calls .* which is not an allowed operator"):
        read(nodes=[node({"value": 0}, operator=name)])


def test_no_allowed_operator_draws() -> None:
    names = {name.split(".")[1] for name in OPERATORS if name.startswith("aten.")}
    assert not [name for name in names if "rand" in name or "dropout" in name or "empty" in name]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": True}, "its schema is True"),
        ({"schema": 2}, "its schema is 2; this version reads 1"),
        ({"schema": None}, "its schema is None"),
        ({"more": 1}, "it must have the keys"),
        ({"inputs": ["a", "a"]}, "inputs: a name occurs twice"),
        ({"inputs": ["a", 3]}, "inputs: every name is a text"),
        ({"inputs": "ab"}, "inputs: a list is expected"),
        ({"nodes": {}}, "nodes: a list is expected"),
        ({"nodes": [["aten.mm.default"]]}, "node 0: it is not"),
        ({"nodes": [[["aten.mm.default"], [], {}]]}, "node 0: it is not"),
        ({"nodes": [node({"value": 2})]}, "it refers to value 2, which is not computed before"),
        ({"nodes": [node({"value": 9})]}, "it refers to value 9"),
        ({"nodes": [node({"value": -1})]}, "it refers to value -1"),
        ({"nodes": [node({"value": True})]}, "'value' with a bool is no argument"),
        ({"nodes": [node({"value": 0, "float": "0x0p+0"})]}, "has one key, not 2"),
        ({"nodes": [node({"import": "os"})]}, "'import' with a str is no argument"),
        ({"nodes": [node({"device": "cuda"})]}, "'device' with a str is no argument"),
        ({"nodes": [node({"dtype": "float99"})]}, "'float99' is not an allowed dtype"),
        ({"nodes": [node({"layout": "__class__"})]}, "is not an allowed layout"),
        ({"nodes": [node({"float": "ten"})]}, "'ten' is no float in hexadecimal"),
        ({"nodes": [node({"float": "0x1p+99999"})]}, "is no float in hexadecimal"),
        ({"nodes": [node(1.5)]}, "a bare number with a point"),
        ({"nodes": [node(2**63)]}, "an integer has more than 64 bits"),
        ({"nodes": [node("__import__('os')")]}, "is not an allowed word"),
        ({"nodes": [node([[[[[[1]]]]]])]}, "lists are nested too deep"),
        ({"nodes": [["aten.mm.default", [], {"a=1, b": 1}]]}, "is no argument's name"),
        ({"nodes": [node({"value": 0}, operator="aten.relu_.default")]}, WRITES),
        ({"nodes": [node(operator="aten.relu_.default", self={"value": 0})]}, WRITES),
        ({"nodes": [VIEW, node({"value": 2}, operator="aten.relu_.default")]}, WRITES),
        ({"nodes": [PARTS, ITEM, node({"value": 3}, operator="aten.relu_.default")]}, WRITES),
        ({"nodes": [normalization({"value": 1})]}, WRITES),
        ({"nodes": [VIEW, normalization({"value": 2})]}, WRITES),
        (
            {
                "constants": [constant()],
                "nodes": [node({"value": 2}, operator="aten.zero_.default")],
            },
            WRITES,
        ),
        ({"nodes": [node(operator="gradient.enabled")]}, "it takes true or false"),
        ({"nodes": [node(1, operator="gradient.enabled")]}, "it takes true or false"),
        ({"nodes": [mask(probability=1.0)]}, "it takes a seed, a site's number"),
        ({"nodes": [mask(site={"value": 0})]}, "it takes a seed, a site's number"),
        ({"nodes": [attention(0.5)]}, "its dropout must be 0"),
        ({"nodes": [attention({"value": 0})]}, "its dropout must be 0"),
        ({"outputs": [["c", 3]]}, "output 'c': it refers to value 3"),
        ({"outputs": [["c", "2"]]}, "outputs: an item is not"),
        ({"outputs": [["c", 2], ["c", 0]]}, "outputs: a name occurs twice"),
        ({"constants": [constant(dtype="object")]}, "'object' is not an allowed dtype"),
        ({"constants": [constant(shape=[7])]}, "48 bytes do not fill shape"),
        ({"constants": [constant(shape=[-6])]}, "constant 0: its shape is out of range"),
        ({"constants": [constant(shape=[2**62, 2**62])]}, "its shape is out of range"),
        ({"constants": [constant(base64="!!!")]}, "constant 0: its values are not base64"),
        ({"constants": [constant(pickle="gASV")]}, "constant 0: it is not"),
    ],
)
def test_a_hostile_file_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match="the plan's torch step is refused") as caught:
        read(**changes)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04pickle", "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "it is not JSON"),
        (b"[" * 200_000, "its JSON is nested too deep"),
        (b" " * (MAXIMUM_BYTES + 1), f"the limit is {MAXIMUM_BYTES}"),
    ],
)
def test_bytes_that_are_no_graph_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        read_graph(data)


def test_too_many_nodes_and_too_large_constants_are_refused() -> None:
    with pytest.raises(PlanError, match=f"the limit is {MAXIMUM_NODES}"):
        AtenGraph(("a",), (), (AtenNode("aten.neg.default", (A,)),) * (MAXIMUM_NODES + 1), ())
    with pytest.raises(PlanError, match=f"the limit is {MAXIMUM_CONSTANT_BYTES}"):
        AtenGraph((), (np.zeros(MAXIMUM_CONSTANT_BYTES + 1, np.uint8),), (), ())
