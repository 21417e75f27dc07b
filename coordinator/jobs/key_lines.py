"""The line of each key in a TOML text, which the standard library's parser does not tell.

The text must be one that `tomllib` accepts: this is a scanner for places, not a second parser.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''(?P<space>[ \t]+|\#[^\n]*)
      | (?P<newline>\r?\n)
      | (?P<text>"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
      | (?P<sign>[][{},=.])
      | (?P<word>[^\s\#"'\][{},=.]+)''',
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) on which each key, table header and list item of a TOML text stands.

    Paths are as in the parsed value: table and key names, and positions in lists. A table that
    appears several times keeps its first line.
    """
    return _Scanner(list(_tokens(text))).scan()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path or, where the text has no such key, of the nearest table around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
    yield _Token("end", "", line)


class _Scanner:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._lines: dict[Path, int] = {}
        self._array_lengths: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._peek().kind != "end":
            if self._peek().kind == "newline":
                self._take()
            elif self._peek().text == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        if token.kind != "end":
            self._next += 1
        return token

    def _header(self) -> Path:
        line = self._take().line
        is_array = self._peek().text == "["
        if is_array:
            self._take()
        *parents, last = self._names()
        while self._peek().kind not in ("newline", "end"):
            self._take()
        parent = self._enter((), parents, line)
        table = (*parent, last)
        self._lines.setdefault(table, line)
        if is_array:
            self._array_lengths[table] = self._array_lengths.get(table, -1) + 1
            table = (*table, self._array_lengths[table])
            self._lines[table] = line
        return table

    def _enter(self, table: Path, names: list[str], line: int) -> Path:
        """The table that dotted names lead to; within a list of tables, its last one."""
        for name in names:
            table = (*table, name)
            self._lines.setdefault(table, line)
            if table in self._array_lengths:
                table = (*table, self._array_lengths[table])
        return table

    def _names(self) -> list[str]:
        names = [self._name()]
        while self._peek().text == ".":
            self._take()
            names.append(self._name())
        return names

    def _name(self) -> str:
        token = self._take()
        return token.text[1:-1] if token.kind == "text" else token.text

    def _pair(self, table: Path) -> None:
        line = self._peek().line
        *parents, last = self._names()
        self._take()  # the equals sign
        path = (*self._enter(table, parents, line), last)
        self._lines.setdefault(path, line)
        self._value(path)

    def _value(self, path: Path) -> None:
        token = self._peek()
        if token.text == "{":
            self._inline_table(path)
        elif token.text == "[":
            self._array(path)
        else:
            while self._peek().text not in (",", "]", "}") and self._peek().kind not in (
                "newline",
                "end",
            ):
                self._take()

    def _inline_table(self, path: Path) -> None:
        self._take()
        while self._peek().text not in ("}", ""):
            if self._peek().kind == "newline" or self._peek().text == ",":
                self._take()
            else:
                self._pair(path)
        self._take()

    def _array(self, path: Path) -> None:
        self._take()
        position = 0
        while self._peek().text not in ("]", ""):
            if self._peek().kind == "newline" or self._peek().text == ",":
                self._take()
            else:
                self._lines.setdefault((*path, position), self._peek().line)
                self._value((*path, position))
                position += 1
        self._take()
