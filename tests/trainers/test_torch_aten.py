"""Loading the torch form: calls that do not fit are refused, and nothing in a file becomes code."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.compiler import counter_random
from edge_client.trainers.torch_aten import load_graph
from edge_client.trainers.torch_keep_mask import keep_mask
from headwater.aten import AtenGraph
from headwater.aten_json import read_graph, write_graph
from headwater.aten_nodes import AtenNode, Device, Reference, Symbol
from headwater.aten_operators import (
    ATEN_OPERATORS,
    DROPOUT_ARGUMENTS,
    IN_PLACE_OPERATORS,
    STATISTICS_OPERATORS,
    VIEW_OPERATORS,
)
from headwater.errors import PlanError

CPU = torch.device("cpu")
A, B = Reference(0), Reference(1)


def graph(*nodes: AtenNode, inputs: tuple[str, ...] = ("a", "b")) -> AtenGraph:
    last = Reference(len(inputs) + len(nodes) - 1)
    return AtenGraph(inputs, (), nodes, (("out", last),))


def call(operator: str, *arguments: Any, **keywords: Any) -> AtenNode:
    return AtenNode(operator, arguments, keywords)


def run(*nodes: AtenNode, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    inputs = tuple(f"i{number}" for number in range(len(values)))
    (result,) = load_graph(graph(*nodes, inputs=inputs), CPU)(*values)
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("name", sorted(ATEN_OPERATORS))
def test_the_lists_say_what_torchs_schemas_say(name: str) -> None:
    """Which arguments an operator writes, and whose memory its result may share."""
    _, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    first, *others = found._schema.arguments
    assert not any(argument.alias_info for argument in others)
    writes = first.alias_info is not None and first.alias_info.is_write
    assert writes == found._schema.is_mutable == (name in IN_PLACE_OPERATORS)
    if first.alias_info is not None and not writes:
        assert name in VIEW_OPERATORS
    if torch.Tag.nondeterministic_seeded in found.tags:
        assert "dropout" in found._schema.arguments[DROPOUT_ARGUMENTS[name]].name


@pytest.mark.parametrize("name", sorted(STATISTICS_OPERATORS))
def test_the_statistics_that_no_schema_tells_of(name: str) -> None:
    _, packet, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
    assert [argument.name for argument in schema.arguments[3:5]] == ["running_mean", "running_var"]


def test_what_the_step_made_it_may_write() -> None:
    made = (call("aten.mul.Tensor", A, 2.0), call("aten.select.int", Reference(1), 0, 1))
    written = call("aten.fill_.Scalar", Reference(2), 7.0)
    source = AtenGraph(("a",), (), (*made, written), (("out", Reference(1)),))
    (found,) = load_graph(source, CPU)(torch.ones(2, 2))
    assert found.tolist() == [[2, 2], [7, 7]]


def test_an_author_may_turn_gradients_off_for_a_part() -> None:
    nodes = (
        call("gradient.enabled", False),
        call("aten.mul.Tensor", A, 3.0),
        call("gradient.enabled", True),
        call("aten.mul.Tensor", A, Reference(2)),
    )
    leaf = torch.ones(2, requires_grad=True)
    result = run(*nodes, values=(leaf,))
    assert torch.autograd.grad(result.sum(), leaf)[0].tolist() == [3, 3]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("probability", [1e-9, 0.1, 0.5, 1 - 2**-32])
def test_the_mask_is_that_of_the_generator(seed: int, probability: float) -> None:
    """A million elements: two mixers that differ in low bits alone differ in one of 65,536."""
    given, shape = torch.tensor(seed), (500, 7, 301)
    found = keep_mask(given, 5, shape, probability, CPU)
    assert torch.equal(found, counter_random.keep_mask(given, 5, shape, probability))
    assert given.item() == seed


def test_sizes_follow_the_batch() -> None:
    nodes = (
        call("aten.sym_size.int", A, 0),
        call("number.mul", Reference(1), 2),
        call("number.floordiv", Reference(2), 2),
        call("aten.view.default", A, (Reference(3), -1)),
    )
    for size in (1, 5):
        assert run(*nodes, values=(torch.zeros(size, 2, 3),)).shape == (size, 6)


def test_constants_and_exact_floats_arrive() -> None:
    source = AtenGraph(
        ("a",),
        (np.array([1.0, 2.0], np.float32),),
        (
            call("aten.add.Tensor", A, B),
            call("aten.mul.Tensor", Reference(2), float("inf")),
        ),
        (("sum", Reference(2)), ("infinite", Reference(3))),
    )
    total, infinite = load_graph(source, CPU)(torch.tensor([0.5, 0.5]))
    assert total.tolist() == [1.5, 2.5]
    assert infinite.tolist() == [float("inf")] * 2


def test_factories_follow_the_device_even_when_the_file_names_none() -> None:
    source = AtenGraph(
        (),
        (),
        (call("aten.full.default", (2,), 1.0), call("aten.ones.default", (2,), device=Device())),
        (("a", A), ("b", B)),
    )
    made = load_graph(source, torch.device("meta"))()
    assert [tensor.device.type for tensor in made] == ["meta", "meta"]


def test_generated_code_holds_no_text_of_the_file() -> None:
    source = AtenGraph(
        ("a'); import os #",), (), (call("aten.neg.default", A),), (("b\nimport os", B),)
    )
    module = load_graph(source, CPU)
    assert "import" not in module.code
    assert module(torch.ones(1))[0].item() == -1


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (call("aten.mm.default", A), "the argument 'mat2' is missing"),
        (call("aten.mm.default", A, B, A), "3 arguments; it takes 2"),
        (call("aten.mm.default", A, mat2=B, out=A), "'out' does not exist or is given twice"),
        (call("aten.mm.default", A, B, mat2=B), "'mat2' does not exist or is given twice"),
        (call("aten.mm.default", A, (B,)), "'mat2' must be Tensor"),
        (call("aten.mm.default", A, None), "'mat2' must be Tensor"),
        (call("aten.cat.default", A), "'tensors' must be List[Tensor]"),
        (call("aten.t.default", Device()), "'self' must be Tensor"),
        (call("aten.sum.default", A, dtype=Symbol("layout", "strided")), "must be Optional[Scalar"),
        (call("aten.gelu.default", A, approximate=1), "'approximate' must be str"),
        (call("aten.view.default", A, (1.5,)), "'size' must be List[int]"),
        (call("number.add", 1), "it takes 2 arguments"),
        (call("number.add", 1, 2, key=3), "it takes 2 arguments"),
        (call("item", A, B), "it takes a value and a literal index"),
        (call("item", A, -1), "it takes a value and a literal index"),
        (call("item", (A,), 0), "it takes a value and a literal index"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(node: AtenNode, reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_graph(graph(node), CPU)
    assert reason in str(caught.value)
    assert f"node 0 ({node.operator})" in str(caught.value)


def test_sizes_cannot_grow_without_bound() -> None:
    squares = [call("number.mul", Reference(n), Reference(n)) for n in range(1, 9)]
    with pytest.raises(PlanError, match="a size of more than 64 bits"):
        run(call("aten.sym_size.int", A, 0), *squares, values=(torch.zeros(1000),))


@pytest.mark.parametrize(
    "node",
    [call("number.mul", (1,), 10**12), call("number.mul", A, 2), call("number.sum", (A, 1))],
)
def test_arithmetic_takes_numbers_only(node: AtenNode) -> None:
    with pytest.raises(PlanError, match="or none at all"):
        run(node, values=(torch.zeros(2),))


def test_an_item_that_is_not_there_is_named() -> None:
    split = call("aten.max.dim", A, 0)
    with pytest.raises(PlanError, match="takes result 7 of an operator without it"):
        run(split, call("item", B, 7), values=(torch.zeros(2, 2),))
    with pytest.raises(PlanError, match="takes result 0"):
        run(call("item", A, 0), values=(torch.zeros(2, 2),))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_ends_in_a_plan_error_or_a_valid_graph(data: st.DataObject) -> None:
    nodes = (
        call("aten.sym_size.int", A, 0),
        call("number.mul", Reference(2), 2),
        call("aten.sum.dim_IntList", B, (0,), True, dtype=Symbol("dtype", "float32")),
        call("aten.full.default", (Reference(3),), 0.5, device=Device()),
    )
    constants = (np.arange(3, dtype=np.float32),)
    whole = write_graph(AtenGraph(("a",), constants, nodes, (("out", Reference(5)),)))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 6)))
    text = st.text('0123456789-,:[]{}"aeflnrstuv.x_ ', max_size=6)
    damaged = whole[:start] + data.draw(text).encode() + whole[end:]
    try:
        load_graph(read_graph(damaged), CPU)
    except PlanError as error:
        assert len(str(error)) < 400


def test_an_operator_that_this_torch_lacks_says_what_to_do(monkeypatch: Any) -> None:
    name = "aten.operator_of_tomorrow.default"
    monkeypatch.setattr("headwater.aten.OPERATORS", {name})
    monkeypatch.setattr("edge_client.trainers.torch_aten.ATEN_OPERATORS", {name})
    with pytest.raises(PlanError, match="install a newer torch, or use the onnxruntime trainer"):
        load_graph(graph(call(name, A)), CPU)
