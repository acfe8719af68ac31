"""What a query may ask for, decided on its tokens before the engine sees it.

The engine behind the embedded store has no users, and any query may read the files of its process, so the front decides. What
stands inside a text literal is just text; a comment, another case, quotes around a function's name or an escape in them change
nothing.

What is refused to everybody: more than one statement, INTO OUTFILE, FROM INFILE, table functions and engines that reach beyond
the store, functions that read files or dictionaries, and settings that hold a path, an address, an expression or another
dialect. The reader may only read, which the engine is told as well.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pipeline.shells.store.lexer import Token, syntax, tokens
from pipeline.shells.store.refusal import ACCESS_DENIED, OUT_OF_BOUNDS, READONLY, Refusal
from pipeline.shells.store.statement import InsertFollower, Statement, inserted_into, output_format

READS: Final = frozenset({"select", "with", "from", "show", "describe", "desc", "explain", "exists", "set", "use"})
"""First words of statements that any user may run; the engine runs them read-only."""

WRITES: Final = frozenset({"insert", "create", "alter", "drop", "truncate", "optimize", "rename", "exchange", "delete",
                           "detach", "update"})  # fmt: skip
"""First words of statements that the writer may run."""

KNOWN: Final = frozenset({"attach", "backup", "begin", "check", "commit", "copy", "execute", "grant", "kill", "load", "move",
                          "restore", "revoke", "rollback", "start", "stop", "system", "undrop",
                          "watch"})  # fmt: skip
"""First words of statements that a server has and this store refuses."""

CREATES: Final = frozenset({"or", "replace", "materialized"})
"""Words that may stand between CREATE and TABLE, VIEW or DATABASE. Other things to create reach beyond the store."""

ALTERS_REFUSED: Final = frozenset({"fetch", "freeze", "unfreeze", "attach", "export", "move", "replace"})
ENGINES: Final = re.compile(r"\w*mergetree|memory|null|log|tinylog|stripelog|atomic", re.IGNORECASE)

TABLE_FUNCTIONS: Final = frozenset({"numbers", "numbers_mt", "zeros", "zeros_mt", "generateseries", "generate_series", "null",
                                    "generaterandom", "values", "view", "format", "primes", "sqlstandardvalues",
                                    "mergetreeindex", "mergetreeprojection"})  # fmt: skip
"""Table functions that read only their arguments and the store. All others that the engine has are refused."""

NAMES_REFUSED: Final = re.compile(
    r"file|catboostevaluate|dict(get\w*|has|isin)|ai(classify|embed|extract|filter|generate|redact|similarity|translate)",
    re.IGNORECASE,
)
"""Functions that reach files, dictionaries or the network. As a name they are refused anywhere, since a function may be called
without brackets behind it: `* APPLY(file)`, `arrayMap(file, x)`."""

CALLS_REFUSED: Final = frozenset({"input", "disk"})
IDENTIFIER: Final = re.compile(r"[\w.$-]+")

TEXT_SETTINGS: Final = re.compile(
    r"bool_(false|true)_representation|compatibility|count_distinct_implementation|force_data_skipping_indices"
    r"|(force|preferred)_optimize_projection_name|ignore_data_skipping_indices|insert_deduplication_token|log_comment"
    r"|format_(csv|tsv)_null_representation|format_custom_\w+_delimiter|format_regexp|output_format_pretty_grid_charset"
    r"|output_format_sql_insert_table_name|format_json_object_each_row_column_for_object_name"
)
"""Settings whose value is a text and that open nothing. All others whose value is a text, a map or an address are refused."""

OTHER_SETTINGS_REFUSED: Final = re.compile(
    r"readonly|allow_ddl|profile|\w*dialect|implicit_select|allow_introspection_functions|allow_python_table_function"
    r"|input_format_values_interpret_expressions|dynamic_disk_\w+|ast_fuzzer\w*|allow_fuzz\w+|default_\w+_engine"
)
TEXT_TYPES: Final = frozenset({"String", "Map", "URI"})


class Guard:
    """The rules of one store."""

    def __init__(
        self, *, functions: Iterable[str], settings: Iterable[tuple[str, str]], caps: Mapping[str, int]
    ) -> None:
        """Take the names of the engine's table functions, its settings with their types, and the highest values of some."""
        self._functions = frozenset(name.lower() for name in functions) - TABLE_FUNCTIONS
        self._settings = frozenset(name for name, kind in settings if kind in TEXT_TYPES and not TEXT_SETTINGS.fullmatch(name))
        self._caps = dict(caps)

    def setting(self, name: str) -> None:
        """Refuse a setting that would open what the guard closes. Raises Refusal."""
        if name in self._settings or OTHER_SETTINGS_REFUSED.fullmatch(name):
            raise Refusal(READONLY if name == "readonly" else ACCESS_DENIED, f"setting `{name}` cannot be changed here")

    def cap(self, name: str, value: str) -> None:
        """Refuse a value above the store's limit, or one that is not a plain number. Raises Refusal."""
        most = self._caps.get(name)
        if most is None:
            return
        try:
            given = float(value)
        except ValueError:
            given = 0.0
        if not 0 < given <= most:
            raise Refusal(OUT_OF_BOUNDS, f"setting `{name}`: limit is {most}, and a limit there must be")

    def _name(self, name: str) -> None:
        if NAMES_REFUSED.fullmatch(name):
            raise Refusal(ACCESS_DENIED, f"function `{name.lower()}` is not served")

    def parameter(self, value: str) -> None:
        """Refuse the value of a parameter of type Identifier where the text itself could not say it. Raises Refusal."""
        if not IDENTIFIER.fullmatch(value):
            raise Refusal(ACCESS_DENIED, "a parameter of type `Identifier` has a value that is no plain name")
        for part in value.split("."):
            self._name(part)

    def analyse(
        self, sql: bytes, *, writer: bool, whole: bool = True, params: Mapping[str, str] = MappingProxyType({})
    ) -> Statement:
        """Read a statement and refuse what the user may not do. Raises Refusal.

        `params` are the values of its `{name:Type}`; one that stands for an identifier is read as a part of the text.

        `whole` says that `sql` is all of the request. Then the rows behind VALUES, which may be expressions, are read too;
        otherwise they are data.
        """
        seen: list[Token] = []
        rule = _SettingsRule(self)
        insert: InsertFollower | None = None
        depth = 0
        for token in tokens(sql):
            if seen and seen[-1].sign(";") and not token.sign(";"):
                raise syntax("one request is one statement")
            if token.kind == "sign":
                depth += (token.value in "([{") - (token.value in ")]}")
            self._look(seen[-1] if seen else None, token, writer=writer)
            if token.low == "identifier" and len(seen) > 2 and seen[-1].sign(":") and seen[-2].kind in ("word", "name"):
                self.parameter(params.get(seen[-2].value, "unset"))
            rule.step(token, depth, first=not seen)
            seen.append(token)
            if token.low == "insert" and all(before.sign("(") for before in seen[:-1]):
                insert = InsertFollower(values_are_text=whole)
            if insert is not None and insert.step(token, depth, sql):
                break
        return self._judge(seen, insert, writer=writer)

    def _look(self, last: Token | None, token: Token, *, writer: bool) -> None:
        if token.kind in ("word", "name"):
            self._name(token.value)
        if last is None:
            return
        if token.sign("(") and last.kind in ("word", "name"):
            name = last.value.lower()
            if (name in self._functions or name in CALLS_REFUSED) and not (writer and name == "input"):
                raise Refusal(ACCESS_DENIED, f"function `{name}` is not served")
        elif last.low == "parallel" and token.low == "with":
            raise Refusal(ACCESS_DENIED, "`PARALLEL WITH` is not served: one request is one statement")
        elif last.low == "into" and token.low == "outfile":
            raise Refusal(ACCESS_DENIED, "`INTO OUTFILE` is not served")
        elif last.low == "from" and token.low == "infile":
            raise Refusal(ACCESS_DENIED, "`FROM INFILE` is not served, the data goes in the request's body")

    def _judge(self, seen: Sequence[Token], insert: InsertFollower | None, *, writer: bool) -> Statement:
        words = [token for token in seen if not token.sign("(")]
        verb = words[0].low if words else ""
        settings = any(token.low == "settings" for token in seen)
        if verb in READS:
            return Statement(verb=verb, reads=True, output=output_format(seen), settings=settings)
        if verb in KNOWN:
            raise Refusal(ACCESS_DENIED, f"`{verb.upper()}` is not served")
        if verb not in WRITES:
            raise syntax("the query begins with no statement that is served" if words else "the query is empty")
        if not writer:
            raise Refusal(READONLY, f"`{verb.upper()}` is not allowed: this user may only read")
        if insert is not None:
            insert.finish()
            return Statement(verb=verb, reads=False, settings=settings, data=insert.data, into=inserted_into(seen))
        _check_definition(verb, words)
        return Statement(verb=verb, reads=False, settings=settings)


def _check_definition(verb: str, words: Sequence[Token]) -> None:
    if verb == "create":
        what = next((token.low for token in words[1:] if token.low not in CREATES), "")
        if what not in ("table", "view", "database"):
            raise Refusal(ACCESS_DENIED, "only a table, a view or a database can be created here")
    if verb == "alter" and (len(words) < 2 or words[1].low != "table" or any(w.low in ALTERS_REFUSED for w in words)):
        raise Refusal(ACCESS_DENIED, "this `ALTER` is not served")
    for place, token in enumerate(words):
        if token.low == "engine":
            named = next((then for then in words[place + 1 :] if not then.sign("=")), None)
            if named is not None and named.kind != "text" and not ENGINES.fullmatch(named.value):
                raise Refusal(ACCESS_DENIED, f"engine `{named.value}` is not served")


class _SettingsRule:
    """Sees the settings that a text changes: `SETTINGS a = 1, b = 2`, also in a subquery, and `SET a = 1`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._state = "none"
        self._name = ""
        self._depth = 0

    def step(self, token: Token, depth: int, *, first: bool) -> None:
        """Take the next token. Raises Refusal."""
        if token.low in ("settings", "setting") or (first and token.low == "set"):
            self._state, self._depth = "name", depth
        elif self._state == "name":
            self._state, self._name = ("is", token.value.lower()) if token.kind in ("word", "name") else ("none", "")
        elif self._state == "is":
            self._state = "value" if token.sign("=") else "name" if token.sign(",") else "none"
            if self._state == "value":
                self._guard.setting(self._name)
        elif self._state == "value" and not token.sign("="):
            self._guard.cap(self._name, token.value)
            self._state = "more"
        elif self._state == "more" and depth <= self._depth:
            self._state = "name" if token.sign(",") else "none" if depth < self._depth else "more"
