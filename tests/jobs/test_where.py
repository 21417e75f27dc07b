from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.jobs.where import Attribute, parse_where
from headwater.errors import JobFileError

CLIENT: dict[str, Attribute] = {
    "site": "north",
    "memory_gib": 1.5,
    "cores": 4.0,
    "gpu": False,
    "arm": True,
    "tags": ["canary", "lab"],
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "site == 'north'",
        '  site == "north" and\n cores >= 4  ',
        "1 < memory_gib <= 1.5 < cores",
        "2 <= cores",
        "memory_gib > -1",
        "site in ['north', 'south'] and site not in ('east',)",
        "'lab' in tags and 'gpu' not in tags",
        "arm and not gpu",
        "gpu == False",
        "not (site == 'south' or cores < 2)",
        "cores == 1 or cores == 4",
        "site != 3",
        "True",
        "site == 'a # b' or arm",
        "not (nothing == 1)",
    ],
)
def test_what_holds(text: str) -> None:
    assert parse_where(text).matches(CLIENT) == (True, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("site == 'north' and memory_gib >= 2", "memory_gib is 1.5, not >= 2"),
        ("2 <= memory_gib", "memory_gib is 1.5, not >= 2"),
        ("1 < cores < 3", "cores is 4.0, not < 3"),
        ("cores < memory_gib", "cores is 4.0, not < memory_gib (1.5)"),
        ("1 > 2", "1, not > 2"),
        (
            "site == 'south' or cores == 8",
            "site is 'north', not == 'south' and cores is 4.0, not == 8",
        ),
        ("site in ['east', 'west']", "site is 'north', not in ['east', 'west']"),
        ("site not in ['north']", "site is 'north', which is in ['north']"),
        ("'gpu' in tags", "'gpu', not in tags (['canary', 'lab'])"),
        ("'lab' not in tags", "'lab', which is in tags (['canary', 'lab'])"),
        ("not arm", "arm holds"),
        ("gpu", "gpu is False, not True"),
        ("cores", "cores is 4.0, not True"),
        ("False", "the condition says False"),
        ("region == 'eu'", "region is not reported"),
        ("region != 'eu'", "region is not reported"),
        ("1 < region", "region is not reported"),
        ("site in region", "region is not reported"),
        ("region", "region is not reported"),
        ("site < 3", "site ('north') cannot be compared by < with 3"),
        ("tags >= 'a'", "tags (['canary', 'lab']) cannot be compared by >= with 'a'"),
        ("site == 3", "site is 'north', not == 3"),
        ("'or' in site", "site is 'north', not a list"),
        ("cores not in memory_gib", "memory_gib is 1.5, not a list"),
    ],
)  # fmt: skip
def test_why_not(text: str, reason: str) -> None:
    assert parse_where(text).matches(CLIENT) == (False, reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("site = 'north'", "column 6: invalid syntax"),
        ("cores >", "column "),
        ("  len(tags) > 2", "column 3: len(tags) is not allowed here"),
        ("cores + 1 > 2", "column 1: cores + 1 is not allowed here"),
        ("'ä' == site.name", "column 8: site.name is not allowed here"),
        ("tags[0] == 'lab'", "column 1: tags[0] is not allowed here"),
        ("site == None", "column 9: None is not allowed here"),
        ("site == b'north'", "column 9: b'north' is not allowed here"),
        ("site == f'{cores}'", "column 9: f'{cores}' is not allowed here"),
        ("cores == 1j", "column 10: 1j is not allowed here"),
        ("cores == -'a'", "column 10: -'a' is not allowed here"),
        ("cores == ~1", "column 10: ~1 is not allowed here"),
        ("gpu == true", "column 8: write True"),
        ("gpu is True", "column 8: is and is not do not compare values: use == and !="),
        ("site in 'north'", "column 9: 'north' after in must be a list or a name"),
        ("site in [cores]", "column 10: cores is not allowed here"),
        ("site == ['a']", "column 9: ['a'] is not allowed here"),
        ("'north'", "column 1: 'north' is neither true nor false"),
        ("site == 'a' and 3", "column 17: 3 is neither true nor false"),
        ("(lambda: 1)", "column 2: lambda: 1 is neither true nor false"),
        ("arm if gpu else arm", "column 1: arm if gpu else arm is neither true nor false"),
        ("arm # or gpu", "column 5: no comments"),
        ("x; import os", "column 2: invalid syntax"),
        ("not " * 60 + "arm", "nested more than 40 deep"),
        ("(" * 500 + "arm" + ")" * 500, "column "),
        ("a\0b", "source code string cannot contain null bytes"),
        ("arm or " * 400 + "arm", "at most 2,000 characters, not 2,803"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(JobFileError) as caught:
        parse_where(text)
    assert message in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ["site", "==", "<", "in", "not", "and", "or", "(", ")", "[", "]", ",", "1", "'a'", "-",
             "True", "is", "lambda", ":", "#", "\\", "{", "}", "0x", "1e999", "*", "await"]
        ),
        max_size=12,
    ).map(" ".join)
)  # fmt: skip
@example("'\ud800'")
@example("\x0c a")
@example("1" * 1999 + " > 0")
@example("0x" + "f" * 1990 + " < cores")
@example("'\\d' == site")
@example("-" * 1999)
def test_any_text_is_refused_in_words_or_decides(text: str) -> None:
    try:
        where = parse_where(text)
    except JobFileError as error:
        assert str(error)
    else:
        holds, reason = where.matches(CLIENT)
        assert holds == (reason == "")


literals = (
    st.integers(-5, 5).map(str)
    | st.floats(-5, 5).map(repr)
    | st.sampled_from(["'north'", "'canary'", "'it''s'", '"\\n"', "True", "False"])
)
names = st.sampled_from(["site", "memory_gib", "cores", "gpu", "arm"])
operands = literals | names
comparisons = (
    st.tuples(operands, st.sampled_from(["==", "!="]), operands)
    | st.tuples(
        st.sampled_from(["memory_gib", "cores", "gpu", "3", "-1.5", "True"]),
        st.sampled_from(["<", "<=", ">", ">="]),
        st.sampled_from(["memory_gib", "cores", "arm", "2 < cores", "1.5"]),
    )
    | st.tuples(
        operands,
        st.sampled_from(["in", "not in"]),
        st.just("tags") | st.lists(literals, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    )
).map(" ".join)
conditions = st.recursive(
    comparisons | st.sampled_from(["gpu", "arm", "True", "False"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map("".join)
        | inner.map(lambda one: f"not ({one})")
        | inner.map(lambda one: f"({one})")
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(conditions)
def test_it_decides_as_python_does(text: str) -> None:
    scope: dict[str, Any] = {**CLIENT, "__builtins__": {}}
    expected = bool(eval(text, scope))
    assert parse_where(text).matches(CLIENT)[0] is expected
