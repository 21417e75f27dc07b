"""The encoding that `auto` gives a client: by its link, and by what it knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.encoding_choice import LADDER, encoding_of
from headwater.encodings.names import PARTS, encoding_named, parts_of
from headwater.layout import Layout, Role, TensorSpec
from headwater.updates import maximum_update_bytes

LAYOUT = Layout((TensorSpec("w", (1_000_000,), "float32", Role.TRAINABLE),))
"""4 MB in float32, of which a deadline of 100 s leaves 10 s for the upload."""


@pytest.mark.parametrize(
    ("bytes_per_second", "encoding"),
    [
        (None, "int8+zstd"),
        (1e6, "fp32"),
        (3e5, "bf16"),
        (1.5e5, "int8+zstd"),
        (8e4, "int4+zstd"),
        (1e4, "topk:0.01+zstd"),
        (1.0, "topk:0.01+zstd"),
    ],
)
def test_a_slower_link_gets_a_coarser_encoding(
    bytes_per_second: float | None, encoding: str
) -> None:
    assert encoding_of("auto", PARTS, LAYOUT, bytes_per_second, 100.0).encoding == encoding


@pytest.mark.parametrize(
    ("last", "encoding"),
    [
        ("fp32", "bf16"),
        ("int8+zstd", "int4+zstd"),
        ("topk:0.01+zstd", "topk:0.01+zstd"),
        ("of another job", "fp32"),
    ],
)
def test_an_update_that_did_not_come_in_time_is_followed_by_a_coarser_one(
    last: str, encoding: str
) -> None:
    """Also where earlier uploads were fast: the link has changed."""
    assert encoding_of("auto", PARTS, LAYOUT, 1e9, 100.0, last).encoding == encoding


def test_what_the_job_says_stands() -> None:
    for link in (None, 1.0, 1e9):
        assert encoding_of("bf16", PARTS, LAYOUT, link, 100.0).encoding == "bf16"


@given(
    known=st.sets(st.sampled_from(PARTS)),
    link=st.none() | st.floats(1e-3, 1e12),
    deadline=st.floats(1e-3, 1e7),
)
def test_it_is_always_one_that_the_client_knows_and_the_finest_that_fits(
    known: set[str], link: float | None, deadline: float
) -> None:
    """fp32 is what every client knows."""
    choice = encoding_of("auto", known | {"fp32"}, LAYOUT, link, deadline)
    assert parts_of(choice.encoding) <= known | {"fp32"}
    assert choice.reason
    if link is None:
        return
    ladder = [one for one in LADDER if parts_of(one) <= known | {"fp32"}]
    sizes = {one: maximum_update_bytes(LAYOUT, encoding_named(one)) for one in ladder}
    finer = ladder[: ladder.index(choice.encoding)]
    assert all(sizes[one] / link > 0.1 * deadline for one in finer)
