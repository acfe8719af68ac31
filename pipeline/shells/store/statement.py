"""What a request asks: its first word, the format that it names, and, for an insert, where its data begins.

    INSERT INTO t (a, b) [SETTINGS ...] FORMAT X <data>
    INSERT INTO t (a, b) SELECT ... FROM input('structure') WHERE ... FORMAT X <data>
    INSERT INTO t (a, b) VALUES <data>        (only where the rows are too many to be read as part of the query)
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.shells.store.lexer import Token, syntax
from schemas.store import quote_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where an insert's data is; offsets are bytes of the request's text.

    `clause` is where SETTINGS, FORMAT or VALUES begins, `format_at` where FORMAT or VALUES stands, `begins` where the data is;
    `source` is the range of `input(...)`, `structure` its argument.
    """

    format: str
    clause: int
    format_at: int
    begins: int
    source: tuple[int, int] | None = None
    structure: str = ""

    def read_from(self, text: bytes, path: str) -> str:
        """The same insert, reading its data from a file. Raises UnicodeDecodeError."""
        if self.source is not None:
            start, end = self.source
            source = f"file({quote_text(path)}, {quote_text(self.format)}, {quote_text(self.structure)})"
            return text[:start].decode() + source + text[end : self.format_at].decode()
        before, clause = text[: self.clause].decode(), text[self.clause : self.format_at].decode()
        return f"{before} FROM INFILE {quote_text(path)} {clause} FORMAT {self.format}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement that was allowed.

    `output` is the format that it names for its result; `settings` says that it has, or may have, a SETTINGS clause; `into` is
    the table of an insert, without its database.
    """

    verb: str
    reads: bool
    output: str = ""
    settings: bool = False
    data: Data | None = None
    into: str = ""


def inserted_into(seen: Sequence[Token]) -> str:
    """The table of `INSERT INTO [TABLE] [DATABASE.]TABLE`, or nothing where it is said otherwise."""
    named = [token for token in seen[:6] if not token.sign("(")][1:]
    while named and named[0].low in ("into", "table"):
        named = named[1:]
    if len(named) > 2 and named[1].sign("."):
        named = named[2:]
    return named[0].value if named and named[0].kind in ("word", "name") else ""


def output_format(seen: Sequence[Token]) -> str:
    """The name behind the last FORMAT, or nothing."""
    found = ""
    for here, then in itertools.pairwise(seen):
        if here.low == "format" and then.kind in ("word", "name"):
            found = then.value
    return found


class InsertFollower:
    """Follows an INSERT token by token until its data begins."""

    def __init__(self, *, values_are_text: bool) -> None:
        self._values_are_text = values_are_text
        self._clause: int | None = None
        self._selects = False
        self._input: list[Token] = []
        self._source: tuple[int, int] | None = None
        self._structure = ""
        self._format_at: int | None = None
        self.data: Data | None = None

    def step(self, token: Token, depth: int, sql: bytes) -> bool:
        """Take one token; True when the data begins behind it. Raises Refusal."""
        if self._format_at is not None:
            if token.kind != "word":
                raise syntax("`FORMAT` has no name")
            self._end(token.value, self._format_at, _data_start(sql, token.end))
            return True
        self._look_for_input(token)
        if depth or self._input:
            return False
        if token.low in ("select", "with"):
            self._selects = True
        elif token.low == "settings" and not self._selects:
            self._clause = token.start if self._clause is None else self._clause
        elif token.low == "format":
            self._format_at = token.start
        elif token.low == "values" and not self._selects and not self._values_are_text:
            self._end("Values", token.start, token.end)
            return True
        return False

    def _end(self, name: str, at: int, begins: int) -> None:
        if self._selects and self._source is None:
            raise syntax("an `INSERT` from `SELECT` takes no data unless it reads `input`")
        clause = at if self._clause is None else self._clause
        self.data = Data(format=name, clause=clause, format_at=at, begins=begins, source=self._source,
                         structure=self._structure)  # fmt: skip

    def _look_for_input(self, token: Token) -> None:
        if self._input:
            self._input.append(token)
            if len(self._input) == 2 and not token.sign("("):
                self._input = []  # a column of that name
            elif len(self._input) == 4:
                if [one.kind for one in self._input[2:]] != ["text", "sign"] or not token.sign(")"):
                    raise syntax("`input` takes one text, the structure")
                self._source, self._structure = (self._input[0].start, token.end), self._input[2].value
                self._input = []
        elif self._selects and token.low == "input":
            if self._source is not None:
                raise syntax("`input` stands twice")
            self._input = [token]

    def finish(self) -> None:
        """The text has ended. Raises Refusal when data was promised."""
        if self._format_at is not None and self.data is None:
            raise syntax("`FORMAT` has no name")
        if self._source is not None and self.data is None:
            raise syntax("`input` needs `FORMAT` and data")


def _data_start(sql: bytes, at: int) -> int:
    """Data begins behind the blanks, the semicolon and the one line end that follow the format's name."""
    while sql[at : at + 1] in (b" ", b"\t", b"\f", b"\v"):
        at += 1
    if sql[at : at + 1] == b";":
        at += 1
    if sql.startswith(b"\r\n", at):
        return at + 2
    return at + 1 if sql[at : at + 1] == b"\n" else at
