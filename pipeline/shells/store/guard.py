"""What a query may ask for, decided on its tokens before the engine sees it.

    bytes -> tokens -> Statement (what it is, where its data begins, which format) -> allowed, or a Refusal

The engine behind the embedded store has no users and may read any file of its process, so the front decides. It works on tokens
and not on substrings: a comment inside a name's call, another case, quotes around a function's name or an escape in them change
nothing, and the same words inside a text literal are just text. What the lexer does not know (a character outside ASCII between
tokens, an open quote) is refused: then the engine's reading could differ from ours.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

ACCESS_DENIED: Final = 497
READONLY: Final = 164
SYNTAX_ERROR: Final = 62
LIMIT_EXCEEDED: Final = 452

READS: Final = frozenset({"select", "with", "from", "show", "describe", "desc", "explain", "exists", "values", "set", "use"})
"""First words of statements that any user may run; the engine runs them read-only."""

WRITES: Final = frozenset({"insert", "create", "alter", "drop", "truncate", "optimize", "rename", "exchange", "delete", "detach",
                           "attach", "system"})  # fmt: skip
CREATES: Final = frozenset({"or", "replace", "table", "view", "materialized", "database", "if", "not"})
"""Words that may follow CREATE. Dictionaries, functions, users and named collections reach beyond the store."""

ENGINES: Final = re.compile(r"(\w*mergetree|memory|null|log|tinylog|stripelog|atomic|set|join|buffer|view)", re.I)
SYSTEMS: Final = frozenset({"start", "stop", "flush", "sync", "wait"})

TABLE_FUNCTIONS: Final = frozenset({"numbers", "numbers_mt", "zeros", "zeros_mt", "generateseries", "generate_series", "generaterandom",
                                    "values", "view", "format", "null", "primes", "sqlstandardvalues", "mergetreeindex",
                                    "mergetreeprojection"})  # fmt: skip
"""Table functions that read nothing but their arguments and the store. All others that the engine has are refused."""

FUNCTIONS: Final = frozenset({"file", "input", "disk", "catboostevaluate"})
PREFIXES: Final = ("dictget", "dicthas", "dictisin")

SETTINGS_REFUSED: Final = re.compile(
    r"(format_schema\w*|format_template\w*|\w*schema_registry\w*|additional_table_filters|additional_result_filter"
    r"|parallel_replicas_custom_key\w*|\w+_path|\w+_path_prefix|\w+_url|\w+_script|disk|storage_policy|readonly|allow_ddl"
    r"|input_format_values_interpret_expressions|allow_introspection_functions|profile|execution_mode|max_execution_time_leaf)",
    re.I,
)
"""Settings that open files, addresses or expressions in a text, or loosen the guard. Nobody may set them."""

_SPACE: Final = re.compile(rb"[ \t\r\n\f\v]+")
_WORD: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_$]*")
_NUMBER: Final = re.compile(rb"[0-9][A-Za-z0-9_.]*(?:(?<=[eEpP])[+-][0-9_]+)?")
_LINE: Final = re.compile(rb"(?:--|#!|# |#\t)[^\n]*")
_HEREDOC: Final = re.compile(rb"\$[A-Za-z0-9_]*\$")
_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"a": b"\a", b"v": b"\v", b"e": b"\x1b"}


class Refusal(Exception):
    """The front answers instead of the engine, with ClickHouse's code for it. One line, and no user text beyond a name."""

    def __init__(self, code: int, name: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.status = status


def denied(message: str) -> Refusal:
    """A Refusal with ACCESS_DENIED."""
    return Refusal(ACCESS_DENIED, "ACCESS_DENIED", message)


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is `word`, `name` (quoted), `text` (a literal), `number` or `sign`; `value` without quotes and escapes."""

    kind: str
    value: str
    start: int
    end: int

    @property
    def low(self) -> str:
        """The value of a word in lower case; never equal to a keyword for other kinds."""
        return self.value.lower() if self.kind == "word" else "\0"


def tokens(sql: bytes) -> Iterator[Token]:
    """The tokens of a query as the engine's lexer sees them, comments left out. Raises Refusal for what it does not know."""
    at, end = 0, len(sql)
    while at < end:
        byte = sql[at : at + 1]
        if found := _SPACE.match(sql, at) or _LINE.match(sql, at):
            at = found.end()
        elif sql.startswith(b"/*", at):
            close = sql.find(b"*/", at + 2)
            if close < 0:
                raise _syntax("a comment is not closed")
            at = close + 2
        elif byte in b"'`\"":
            value, stop = _quoted(sql, at)
            yield Token("text" if byte == b"'" else "name", value, at, stop)
            at = stop
        elif found := _WORD.match(sql, at):
            yield Token("word", found[0].decode(), at, found.end())
            at = found.end()
        elif found := _NUMBER.match(sql, at):
            yield Token("number", found[0].decode(), at, found.end())
            at = found.end()
        elif found := _HEREDOC.match(sql, at):
            close = sql.find(found[0], found.end())
            if close < 0:
                raise _syntax("a heredoc is not closed")
            yield Token("text", sql[found.end() : close].decode(errors="replace"), at, close + len(found[0]))
            at = close + len(found[0])
        elif byte in b"#$" or not 0x21 <= byte[0] <= 0x7E:
            raise _syntax(f"byte {byte[0]} outside quotes is not understood")
        else:
            yield Token("sign", byte.decode(), at, at + 1)
            at += 1


def _syntax(message: str) -> Refusal:
    return Refusal(SYNTAX_ERROR, "SYNTAX_ERROR", message, status=400)


def _quoted(sql: bytes, at: int) -> tuple[str, int]:
    quote = sql[at : at + 1]
    value, at = bytearray(), at + 1
    while True:
        one = sql[at : at + 1]
        if not one:
            raise _syntax("a quote is not closed")
        if one == b"\\":
            value, at = _escape(sql, at, value)
        elif one == quote:
            if sql[at + 1 : at + 2] != quote:
                return value.decode(errors="replace"), at + 1
            value += quote
            at += 2
        else:
            value += one
            at += 1


def _escape(sql: bytes, at: int, value: bytearray) -> tuple[bytearray, int]:
    after = sql[at + 1 : at + 2]
    if after == b"x":
        try:
            return value + bytes([int(sql[at + 2 : at + 4], 16)]), at + 4
        except ValueError:
            raise _syntax("an escape is not understood") from None
    return value + _ESCAPES.get(after, after), at + 2


@dataclass(frozen=True, slots=True)
class Statement:
    """What a query is. Offsets are in bytes of the text that was analysed.

    `verb` is the first word; `data_at` is where an insert's data begins (None: there is none); `body_format` is the data's
    format; `cut` is where the data's clause (SETTINGS, FORMAT or VALUES) begins; `format_at` where FORMAT stands; `source` is
    the range of `input(...)` and `source_text` its structure; `output` is the format that a read names itself.
    """

    verb: str
    data_at: int | None = None
    body_format: str = ""
    cut: int = 0
    format_at: int = 0
    source: tuple[int, int] | None = None
    source_text: str = ""
    output: str = ""
    settings: bool = False

    @property
    def reads(self) -> bool:
        """Whether it only reads."""
        return self.verb in READS


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The rules of one store. `functions` are the table functions that the engine has; `caps` the highest value of settings."""

    functions: frozenset[str]
    caps: dict[str, int]

    def analyse(self, sql: bytes, *, writer: bool, whole: bool = True) -> Statement:
        """Read a statement and refuse what the user may not do. Raises Refusal.

        `whole` says that `sql` is all of the request. Then the rows behind VALUES, which may be expressions, are read too;
        otherwise they are data.
        """
        seen: list[Token] = []
        insert: _Insert | None = None
        depth = 0
        for token in tokens(sql):
            if token.kind == "sign":
                depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.value, 0)
                if seen and seen[-1].kind == "sign" and seen[-1].value == ";" and token.value != ";":
                    raise _syntax("one request is one statement")
            elif seen and seen[-1].kind == "sign" and seen[-1].value == ";":
                raise _syntax("one request is one statement")
            self._look(seen, token, writer=writer)
            seen.append(token)
            if insert is None and token.low == "insert" and all(t.value == "(" for t in seen[:-1]):
                insert = _Insert(whole)
            if insert is not None and insert.step(token, depth, sql):
                break
        return self._judge(seen, insert, writer=writer)

    def _look(self, seen: Sequence[Token], token: Token, *, writer: bool) -> None:
        last = seen[-1] if seen else None
        if last is not None and last.kind == "sign" and last.value == "=" and token.value != "=":
            named = next((before for before in reversed(seen) if before.value != "="), last)
            self.cap(named.value, token)
        if token.kind == "sign":
            if token.value == "(" and last is not None and last.kind in ("word", "name"):
                self._call(last.value.lower(), writer=writer)
            elif token.value == "=" and last is not None and last.kind in ("word", "name"):
                self.setting(last.value)
            return
        if last is None:
            return
        if last.low == "into" and token.low == "outfile":
            raise denied("`INTO OUTFILE` is not served")
        if last.low == "from" and token.low == "infile":
            raise denied("`FROM INFILE` is not served: send the data in the request's body")

    def _call(self, name: str, *, writer: bool) -> None:
        if name == "input" and writer:
            return
        if name in FUNCTIONS or name.startswith(PREFIXES) or (name in self.functions and name not in TABLE_FUNCTIONS):
            raise denied(f"function `{name}` is not served")

    def setting(self, name: str) -> None:
        """Refuse a setting that would open what the guard closes."""
        if SETTINGS_REFUSED.fullmatch(name):
            code, label = (READONLY, "READONLY") if name.lower() == "readonly" else (ACCESS_DENIED, "ACCESS_DENIED")
            raise Refusal(code, label, f"setting `{name.lower()}` cannot be changed")

    def cap(self, name: str, value: Token | str) -> None:
        """Refuse a value above the store's limit, or one that is not a plain number."""
        most = self.caps.get(name.lower())
        if most is None:
            return
        text = value if isinstance(value, str) else value.value
        try:
            given = float(text)
        except ValueError:
            given = 0.0
        if not 0 < given <= most:
            raise Refusal(LIMIT_EXCEEDED, "SETTING_CONSTRAINT_VIOLATION", f"setting `{name.lower()}`: limit is {most}", status=400)

    def _judge(self, seen: Sequence[Token], insert: "_Insert | None", *, writer: bool) -> Statement:
        words = [token for token in seen if token.value != "("]
        if not words:
            raise _syntax("the query is empty")
        verb = words[0].low
        has_settings = any(token.low == "settings" for token in seen)
        if verb in READS:
            return Statement(verb=verb, output=_output(seen), settings=has_settings)
        if verb not in WRITES:
            raise denied("this kind of statement is not served")
        if not writer:
            raise Refusal(READONLY, "READONLY", f"this user cannot `{verb.upper()}`: it may only read")
        if verb == "insert" and insert is not None:
            return insert.statement(has_settings)
        if verb == "system" and (len(words) < 2 or words[1].low not in SYSTEMS):
            raise denied("this `SYSTEM` command is not served")
        if verb == "create":
            _check_create(words)
        if verb == "attach" or any(token.low in ("fetch", "freeze", "unfreeze", "dictionary", "collection") for token in words[1:3]):
            raise denied(f"this `{verb.upper()}` is not served")
        for here, then in zip(words, words[1:], strict=False):
            if here.low == "engine":
                named = then if then.value != "=" else words[words.index(then) + 1] if words.index(then) + 1 < len(words) else then
                if not ENGINES.fullmatch(named.value):
                    raise denied(f"engine `{named.value}` is not served")
        return Statement(verb=verb, settings=has_settings)


def _check_create(words: Sequence[Token]) -> None:
    for token in words[1:]:
        if token.low in ("table", "view", "database"):
            return
        if token.low not in CREATES:
            break
    raise denied("this `CREATE` is not served")


def _output(seen: Sequence[Token]) -> str:
    found = ""
    for here, then in zip(seen, seen[1:], strict=False):
        if here.low == "format" and then.kind in ("word", "name"):
            found = then.value
    return found


class _Insert:
    """Follows an INSERT token by token until its data begins."""

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._cut: int | None = None
        self._selects = False
        self._source: list[Token] | None = None
        self._range: tuple[int, int] | None = None
        self._structure = ""
        self._format: tuple[int, str, int] | None = None
        self._pending: int | None = None

    def step(self, token: Token, depth: int, sql: bytes) -> bool:
        """Take one token; True when the data begins behind it."""
        if self._pending is not None:
            if token.kind not in ("word", "name"):
                raise _syntax("FORMAT has no name")
            self._format = (self._pending, token.value, _data_start(sql, token.end))
            return True
        if self._source is not None:
            self._source.append(token)
            if token.value == ")" and token.kind == "sign":
                self._end_source()
            return False
        if self._selects and token.low == "input":
            if self._range is not None:
                raise _syntax("`input` stands twice")
            self._source = [token]
        if depth:
            return False
        if token.low in ("select", "with"):
            self._selects = True
        elif token.low == "settings" and not self._selects and self._cut is None:
            self._cut = token.start
        elif token.low == "format":
            self._cut = token.start if self._cut is None else self._cut
            self._pending = token.start
        elif token.low == "values" and not self._selects and not self._whole:
            self._cut = token.start if self._cut is None else self._cut
            self._format = (token.start, "Values", token.end)
            return True
        return False

    def _end_source(self) -> None:
        assert self._source is not None
        kinds = [token.kind for token in self._source]
        if kinds != ["word", "sign", "text", "sign"]:
            if len(kinds) > 1 and self._source[1].value != "(":
                self._source = None
                return
            raise _syntax("`input` takes one text: the structure")
        self._range = (self._source[0].start, self._source[3].end)
        self._structure = self._source[2].value
        self._source = None

    def statement(self, settings: bool) -> Statement:
        """What it is, now that all of it up to the data has been seen."""
        if self._format is None:
            if self._range is not None:
                raise _syntax("`input` needs FORMAT and data")
            return Statement(verb="insert", settings=settings)
        at, name, data_at = self._format
        if self._selects and self._range is None:
            raise _syntax("an INSERT from SELECT takes no data unless it reads `input`")
        return Statement(
            verb="insert", data_at=data_at, body_format=name, cut=at if self._cut is None else self._cut, format_at=at,
            source=self._range, source_text=self._structure, settings=settings,
        )  # fmt: skip


def _data_start(sql: bytes, at: int) -> int:
    """Data begins behind the blanks and one line end that follow the format's name."""
    while sql[at : at + 1] in (b" ", b"\t", b"\f", b"\v") and at < len(sql):
        at += 1
    if sql[at : at + 1] == b";":
        at += 1
    if sql.startswith(b"\r\n", at):
        return at + 2
    return at + 1 if sql[at : at + 1] == b"\n" else at
