import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.jobs.key_lines import key_lines, line_of

TEXT = '''\
a = 1 # b = 2
"quoted key" = "x = [1,\\" {"
c.d.e = [ # comment ]
  1,
  { f = 2, g.h = [
    3 ] },
]
[table] # [not]
i = """
j = 1
"""
k = \'\'\'
[l]\'\'\'

[table.'inner one'.deep]
m = 1979-05-27 07:32:00.5
n = -1.5e3
[[list]]
o = { }
[[list]]
p = { q = "}", r = { s = 1 } }
[list.t]
u = 1
[[list.v]]
w = 1
'''


def test_where_each_key_stands() -> None:
    assert key_lines(TEXT) == {
        ("a",): 1,
        ("quoted key",): 2,
        ("c",): 3,
        ("c", "d"): 3,
        ("c", "d", "e"): 3,
        ("c", "d", "e", 0): 4,
        ("c", "d", "e", 1): 5,
        ("c", "d", "e", 1, "f"): 5,
        ("c", "d", "e", 1, "g"): 5,
        ("c", "d", "e", 1, "g", "h"): 5,
        ("c", "d", "e", 1, "g", "h", 0): 6,
        ("table",): 8,
        ("table", "i"): 9,
        ("table", "k"): 12,
        ("table", "inner one"): 15,
        ("table", "inner one", "deep"): 15,
        ("table", "inner one", "deep", "m"): 16,
        ("table", "inner one", "deep", "n"): 17,
        ("list",): 18,
        ("list", 0): 18,
        ("list", 0, "o"): 19,
        ("list", 1): 20,
        ("list", 1, "p"): 21,
        ("list", 1, "p", "q"): 21,
        ("list", 1, "p", "r"): 21,
        ("list", 1, "p", "r", "s"): 21,
        ("list", 1, "t"): 22,
        ("list", 1, "t", "u"): 23,
        ("list", 1, "v"): 24,
        ("list", 1, "v", 0): 24,
        ("list", 1, "v", 0, "w"): 25,
    }


def _paths(value: Any, under: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    if isinstance(value, dict):
        steps: list[tuple[str | int, Any]] = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    else:
        return {under}
    below = (_paths(one, (*under, step)) for step, one in steps)
    return {under}.union(*below)


def test_it_knows_every_path_that_the_parser_sees() -> None:
    assert set(key_lines(TEXT)) == _paths(tomllib.loads(TEXT)) - {()}


def test_a_missing_key_stands_where_its_table_does() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, ("table", "z", "y")) == 8
    assert line_of(lines, ("z",)) == 1


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab=[]{},.\n\"'#\\ 1", max_size=30))
def test_any_valid_text_is_scanned(text: str) -> None:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(lines) == _paths(values) - {()}
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
