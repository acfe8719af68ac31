"""Cedar's tokens, each with its place, cut as the parser asks for them.

White space and comments (`// ...`) are what Cedar takes for them. A text that is no token is refused where it stands.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.errors import OperatorFault
from schemas.vocabulary import shown

_SPACE: Final = r"[\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]++|//[^\n\r]*+"
_TOKEN: Final = re.compile(  # possessive (`*+`): a file of 4 MiB that is one string must not cost a gigabyte to go back in
    rf"(?P<space>(?:{_SPACE})++)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*+)"
    r'|(?P<string>"(?:[^"\\]++|\\[^\n])*+")'
    r"|(?P<slot>\?[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>[0-9]+)"
    r"|(?P<sign>::|==|!=|<=|>=|&&|\|\||[@(){}\[\];:,.=<>!+*/-])"
)


class Token(NamedTuple):
    """A piece of policy text, how it is written, and the index where it begins.

    `kind` is one of `name`, `string`, `slot`, `number`, `sign` and `end`.
    """

    kind: str
    text: str
    at: int

    def __str__(self) -> str:
        """As an error names it."""
        if self.kind == "end":
            return "the end of the file"
        return f"`{shown(self.text)}`"


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one file, and how errors name the file."""

    name: str
    text: str

    @property
    def short(self) -> str:
        """The file's name without its folder: what default policy ids begin with."""
        return self.name.rpartition("/")[2]

    def place(self, at: int) -> str:
        """`FILE:LINE:COLUMN` of an index into the text. Both count from 1, columns in characters."""
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        return f"{self.name}:{line}:{column}"

    def fault(self, at: int, message: str) -> OperatorFault:
        """The error that something is wrong with the text at index `at`."""
        return OperatorFault(f"{self.place(at)}: {message}")


def tokens(source: Source) -> Iterator[Token]:
    """Every token, then `end`. Raises OperatorFault at the first text that is none."""
    text, at = source.text, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _no_token(source, at)
        kind = str(found.lastgroup)
        if kind != "space":
            yield Token(kind, found[0], at)
        at = found.end()
    yield Token("end", "", at)


def _no_token(source: Source, at: int) -> OperatorFault:
    character = source.text[at]
    if character == '"':
        return source.fault(at, "this string has no closing quote")
    if character == "\ufeff":
        return source.fault(at, "the file begins with a byte order mark: save it as utf-8 without one")
    if character == "'":
        return source.fault(at, "a string stands in double quotes")
    return source.fault(at, f"`{shown(character)}` is nothing that Cedar knows")
