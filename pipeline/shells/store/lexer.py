"""A query's bytes as tokens, in the same places as the engine's own lexer sees them, comments left out.

The engine also takes typographic quotes, blanks of other scripts and some escapes that say nothing. Whatever is not understood
here is refused, so that there is no text that we read in one way and the engine in another.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.shells.store.refusal import SYNTAX_ERROR, Refusal

_SPACE: Final = re.compile(rb"[ \t\r\n\f\v]+")
_LINE: Final = re.compile(rb"(?:--|#!|#[ \t])[^\n]*")
_WORD: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_$]*")
_NUMBER: Final = re.compile(rb"0[xX][0-9A-Fa-f_]+|0[bB][01_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9]+)?")
_RUNS_ON: Final = re.compile(rb"[A-Za-z0-9_$]")
_HEREDOC: Final = re.compile(rb"\$[A-Za-z0-9_]*\$")
_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"a": b"\a", b"v": b"\v",
                   b"e": b"\x1b", b"N": b""}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is `word`, `name` (in quotes), `text` (a literal), `number` or `sign`; `value` has no quotes and no escapes."""

    kind: str
    value: str
    start: int
    end: int

    @property
    def low(self) -> str:
        """A word in lower case; a keyword never equals this of another kind."""
        return self.value.lower() if self.kind == "word" else "\0"

    def sign(self, value: str) -> bool:
        """Whether it is this sign."""
        return self.kind == "sign" and self.value == value


def syntax(message: str) -> Refusal:
    """A Refusal with SYNTAX_ERROR."""
    return Refusal(SYNTAX_ERROR, message)


def tokens(sql: bytes) -> Iterator[Token]:
    """The tokens of a query. Raises Refusal for what is not understood."""
    at, end = 0, len(sql)
    while at < end:
        if found := _SPACE.match(sql, at) or _LINE.match(sql, at):
            at = found.end()
        elif sql.startswith(b"/*", at):
            at = _find(sql, b"*/", at + 2, "a comment")
        else:
            token = _token(sql, at)
            yield token
            at = token.end


def _find(sql: bytes, what: bytes, at: int, name: str) -> int:
    found = sql.find(what, at)
    if found < 0:
        raise syntax(f"{name} is not closed")
    return found + len(what)


def _token(sql: bytes, at: int) -> Token:
    byte = sql[at : at + 1]
    if byte in b"'`\"":
        value, end = _quoted(sql, at)
        return Token("text" if byte == b"'" else "name", value, at, end)
    if found := _WORD.match(sql, at):
        return Token("word", found[0].decode(), at, found.end())
    if found := _NUMBER.match(sql, at):
        if _RUNS_ON.match(sql, found.end()):
            raise syntax("a number runs into a word")
        return Token("number", found[0].decode(), at, found.end())
    if found := _HEREDOC.match(sql, at):
        end = _find(sql, found[0], found.end(), "a heredoc")
        return Token("text", sql[found.end() : end - len(found[0])].decode(errors="replace"), at, end)
    if byte in b"#$" or not 0x21 <= byte[0] <= 0x7E:
        raise syntax(f"byte {byte[0]} stands outside quotes and comments")
    return Token("sign", byte.decode(), at, at + 1)


def _quoted(sql: bytes, at: int) -> tuple[str, int]:
    quote, value = sql[at : at + 1], bytearray()
    at += 1
    while True:
        one = sql[at : at + 1]
        if not one:
            raise syntax("a quote is not closed")
        if one == b"\\":
            added, at = _escape(sql, at)
            value += added
        elif one != quote:
            value += one
            at += 1
        elif sql[at + 1 : at + 2] == quote:
            value += quote
            at += 2
        else:
            return value.decode(errors="replace"), at + 1


def _escape(sql: bytes, at: int) -> tuple[bytes, int]:
    after = sql[at + 1 : at + 2]
    if after == b"x":
        try:
            return bytes.fromhex(sql[at + 2 : at + 4].decode()), at + 4
        except ValueError:
            raise syntax("an escape is not understood") from None
    return _ESCAPES.get(after, after), at + 2
