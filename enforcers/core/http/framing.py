"""Where a body ends, by the strict rules (RFC 9112, section 6), and bodies taken apart and put together.

    NONE          no body                       CHUNKED       `Transfer-Encoding: chunked`, exactly so
    LENGTH n      n bytes (0 is one of them)    UNTIL_CLOSE   an answer that ends with its connection

A body in chunks is read strictly: a size is one to fifteen hexadecimal digits, its line ends in CRLF with nothing around it, an
extension has its grammar and is dropped. A trailer that would change what the head said is dropped.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from enforcers.core.http.fields import (
    BARE_LF,
    NOT_IN_TRAILERS,
    TOKEN,
    BadRequest,
    Fault,
    Fields,
    read_fields,
)

CHUNK_LINE_BYTES_MAX: Final = 1024
"""Bytes of one chunk's size line with its extensions and CRLF. A longer one is refused."""

CHUNK_WASTE_BYTES_MAX: Final = 16 << 10
"""Bytes that the size lines of a body may have beyond 16 and twice the data for each chunk, in all. More is refused: such a
body is there to keep its reader busy."""

TRAILER_BYTES_MAX: Final = 8 << 10
"""Bytes of a trailer section. A longer one is refused."""


class Framing(NamedTuple):
    """Where a body ends: `kind` is one of the four letters below, `length` counts for `n` only."""

    kind: str
    length: int = 0


NONE: Final = Framing("-")
CHUNKED: Final = Framing("c")
UNTIL_CLOSE: Final = Framing("x")
LENGTH: Final = "n"

_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,17}")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*+")


def read_length(value: bytes, fault: Fault) -> Framing:
    """What a `Content-Length` says. `value` is as written behind `: `, so that space around it is refused too."""
    framing = _length(value) if len(value) <= 18 else None
    if framing is None:
        raise fault("content-length", "`Content-Length` is no plain number of at most 18 digits")
    return framing


@lru_cache(1024)
def _length(value: bytes) -> Framing | None:
    return Framing(LENGTH, int(value)) if _DECIMAL.fullmatch(value) else None


def read_coding(value: bytes, minor: int, fault: Fault) -> Framing:
    """What a `Transfer-Encoding` says: only `chunked` will do, and only in HTTP/1.1."""
    if minor == 0:
        raise fault("old-coding", "HTTP/1.0 has no `Transfer-Encoding`")
    if value != b"chunked":
        raise fault("transfer-encoding", "`Transfer-Encoding` is not exactly `chunked`")
    return CHUNKED


class Body:
    """Takes one body apart. `feed` gives the pieces of content; behind its end (`done`) the bytes are in `extra`.

    What it holds is bounded by one line or one trailer section; content is passed through, never collected.
    """

    __slots__ = ("_buffer", "_fault", "_kind", "_left", "_state", "_waste", "done", "extra", "trailers")

    def __init__(self, framing: Framing, fault: Fault = BadRequest) -> None:
        self._fault = fault
        self._kind, self._left = framing
        self._buffer = b""
        self._state = _SIZE_LINE
        self._waste = 0
        self.done = framing.kind == NONE.kind or (framing.kind == LENGTH and not framing.length)
        self.extra = b""
        self.trailers: Fields = []
        """The trailers that may go on, when it is done."""

    @property
    def open_ended(self) -> bool:
        """Whether the end of the connection is this body's end."""
        return self._kind == UNTIL_CLOSE.kind

    def feed(self, data: bytes) -> list[bytes]:
        """The content in the next bytes of the connection. Raises BadRequest or BadAnswer; it must not be fed again then."""
        if self.done:
            self.extra += data
            return []
        if self._kind == UNTIL_CLOSE.kind:
            return [data] if data else []
        if self._kind == CHUNKED.kind:
            return self._chunks(self._buffer + data if self._buffer else data)
        size = len(data)
        if size < self._left:
            self._left -= size
            return [data] if data else []
        self.done = True
        if size > self._left:
            self.extra = data[self._left :]
            data = data[: self._left]
        self._left = 0
        return [data]

    def end(self) -> None:
        """The connection has ended. Raises BadRequest or BadAnswer when that cuts the body short."""
        if self._kind == UNTIL_CLOSE.kind:
            self.done = True
        if not self.done:
            raise self._fault("cut-short", "the connection ended in the middle of a body")

    def _chunks(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        at, size = 0, len(data)
        self._buffer = b""
        while at < size:
            if self._state == _DATA:
                piece = data[at : at + self._left] if at or self._left < size else data
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                if not self._left:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                if size - at < 2:
                    if data[at:] != b"\r":
                        raise self._fault("chunk-end", "a chunk does not end in CRLF")
                    break
                if data[at : at + 2] != b"\r\n":
                    raise self._fault("chunk-end", "a chunk does not end in CRLF")
                at += 2
                self._state = _SIZE_LINE
            elif self._state == _SIZE_LINE:
                end = self._line_end(data, at)
                if end < 0:
                    break
                self._size_line(data[at:end])
                at = end + 2
            elif (end := self._trailers_end(data, at)) >= 0:
                self.trailers = self._read_trailers(data[at:end])
                self.done = True
                self.extra = data[end:]
                return pieces
            else:
                break
        self._buffer = data[at:]
        return pieces

    def _line_end(self, data: bytes, at: int) -> int:
        """Where the size line at `at` ends; -1 when more is needed. What can never become one is refused at once."""
        end = data.find(b"\n", at, at + CHUNK_LINE_BYTES_MAX)
        if end < 0:
            if len(data) - at >= CHUNK_LINE_BYTES_MAX:
                raise self._fault("chunk-line", f"a chunk's size line has more than {CHUNK_LINE_BYTES_MAX} bytes")
            return -1
        if end == at or data[end - 1] != 13:
            raise self._fault("bare-lf", "a chunk's size line ends in a bare LF")
        return end - 1

    def _size_line(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            raise self._fault("chunk-size", "a chunk's size line is no plain hexadecimal size with extensions")
        self._left = int(found[1], 16)
        self._waste = max(0, self._waste + len(line) + 2 - 16 - 2 * self._left)
        if self._waste > CHUNK_WASTE_BYTES_MAX:
            raise self._fault("chunk-waste", "the chunks of this body are more line than data")
        self._state = _DATA if self._left else _LAST

    def _trailers_end(self, data: bytes, at: int) -> int:
        """Where the trailer section at `at` ends, its empty line included; -1 when more is needed."""
        if data.startswith(b"\r\n", at):
            return at + 2
        end = data.find(b"\r\n\r\n", at, at + TRAILER_BYTES_MAX)
        if end < 0 and BARE_LF.search(data, at):
            raise self._fault("bare-lf", "the trailers have a line that ends in a bare LF")
        if end < 0 and len(data) - at >= TRAILER_BYTES_MAX:
            raise self._fault("long-trailers", f"the trailers have more than {TRAILER_BYTES_MAX} bytes")
        return end + 4 if end >= 0 else -1

    def _read_trailers(self, section: bytes) -> Fields:
        fields = read_fields(section, self._fault)
        return [one for one in fields if one[0] not in NOT_IN_TRAILERS and not one[0].startswith(b"proxy-")]


_SIZE_LINE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_LAST: Final = 3
"""Behind the last chunk: the trailers and the empty line."""


def chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def chunks(pieces: Iterable[bytes], trailers: Sequence[tuple[bytes, bytes]] | None) -> bytes:
    """Pieces of a body in chunks, and behind them its end where its trailers are known."""
    return b"".join([chunk(piece) for piece in pieces]) + (b"" if trailers is None else last_chunk(trailers))


def last_chunk(trailers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The end of a body in chunks, with the trailers that `Body` let through."""
    return b"".join((b"0\r\n", *(b"%b: %b\r\n" % one for one in trailers), b"\r\n"))
