"""The first bytes of a TLS client: whom it says that it wants to reach, read from its ClientHello.

    record   type 22 | version 3.1 to 3.3 | length 1..16384 | fragment        (RFC 8446, section 5.1)
    hello    type 1 | length 24 bits | version, random, session id, cipher suites, compression, extensions   (section 4.1.2)

Strict, because what we read must be what the origin reads: lengths fit exactly, no extension comes twice, one server name and
nothing but a host name (RFC 6066, section 3), and nothing behind the hello in its record. What differs is not TLS to us. The
hello may be cut into several records and arrive in any pieces; what follows its last record (early data) is not looked at.

A client that offers Encrypted ClientHello may reach another name than the one that is seen. Browsers also send that extension
without meaning it (GREASE), which nobody between can tell from one that is meant: both count as encrypted.
"""

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

HELLO_BYTES_MAX: Final = 16 << 10
"""Bytes in which the hello must end, record headers included. A longer one is not TLS to us."""

RECORDS_MAX: Final = 64
"""Records that one hello may be cut into."""

_RECORD_BYTES_MAX: Final = 1 << 14
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ECH: Final = frozenset({0xFE0D, 0xFD00, 0xFFCE, *range(0xFE08, 0xFE0D)})
"""`encrypted_client_hello` and `ech_outer_extensions` by their IANA numbers, and those that the drafts before them used."""
_NAME: Final = re.compile(rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")
_NAME_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Hello:
    """A whole ClientHello."""

    sni: str
    """The server name in lower case, without a dot at its end; empty where none is named."""
    ech: bool
    """Whether another hello may be hidden inside it."""


@dataclass(frozen=True, slots=True)
class NotTls:
    """These bytes begin no ClientHello that has one meaning."""

    why: str


Look: TypeAlias = Hello | NotTls | int
"""An int: so many bytes are needed before it makes sense to look again, counted from the first."""


class _Malformed(Exception):
    """With why, for NotTls."""


def look(data: bytes | bytearray) -> Look:
    """Read the first bytes of a connection. Says NotTls as early as it can, never raises, never asks beyond HELLO_BYTES_MAX."""
    try:
        found = _hello(data)
        if isinstance(found, int):
            return found
        return _read_hello(found)
    except _Malformed as fault:
        return NotTls(str(fault))


def _hello(data: bytes | bytearray) -> bytes | int:
    """Gather the body of the hello out of its records; an int: how many bytes must be there to get on."""
    at, have, body, size = 0, len(data), b"", -1
    for _ in range(RECORDS_MAX):
        if have > at and data[at] != _HANDSHAKE:
            raise _Malformed("not a tls handshake" if at == 0 else "another record inside the hello")
        if have > at + 1 and data[at + 1] != 3:
            raise _Malformed(f"tls record version {data[at + 1]}")
        if have > at + 2 and not 1 <= data[at + 2] <= 3:
            raise _Malformed(f"tls record version 3.{data[at + 2]}")
        if have < at + 5:
            return _asked(at + 5)
        length = data[at + 3] << 8 | data[at + 4]
        if not 1 <= length <= _RECORD_BYTES_MAX:
            raise _Malformed(f"tls record of {length} bytes")
        body += data[at + 5 : at + 5 + length]
        at += 5 + length
        if body and body[0] != _CLIENT_HELLO:
            raise _Malformed(f"handshake message of type {body[0]}")
        if len(body) >= 4 and size < 0:
            size = 4 + int.from_bytes(body[1:4])
            if size > HELLO_BYTES_MAX:
                raise _Malformed(f"hello of {size} bytes, limit is {HELLO_BYTES_MAX}")
        if have < at:
            return _asked(at)
        if size >= 0 and len(body) >= size:
            if len(body) > size:
                raise _Malformed("bytes behind the hello in its record")
            if at > HELLO_BYTES_MAX:
                _asked(at)
            return body[4:]
    raise _Malformed(f"hello in more than {RECORDS_MAX} records")


def _asked(needed: int) -> int:
    if needed > HELLO_BYTES_MAX:
        raise _Malformed(f"hello of more than {HELLO_BYTES_MAX} bytes")
    return needed


def _vector(data: bytes, at: int, size: int, what: str) -> tuple[int, int]:
    """Where the bytes begin and end that a length of `size` bytes at `at` stands before."""
    start = at + size
    end = start + int.from_bytes(data[at:start])
    if start > len(data) or end > len(data):
        raise _Malformed(f"hello ends inside its {what}")
    return start, end


def _read_hello(body: bytes) -> Hello:
    if len(body) < 34:
        raise _Malformed("hello ends inside its random")
    version = body[0] << 8 | body[1]
    if not 0x0301 <= version <= 0x0303:
        raise _Malformed(f"hello version {body[0]}.{body[1]}")
    start, at = _vector(body, 34, 1, "session id")
    if at - start > 32:
        raise _Malformed("session id of more than 32 bytes")
    start, at = _vector(body, at, 2, "cipher suites")
    if at - start < 2 or (at - start) % 2:
        raise _Malformed(f"cipher suites of {at - start} bytes")
    start, at = _vector(body, at, 1, "compression methods")
    if start == at:
        raise _Malformed("no compression method")
    if at == len(body):  # as before TLS 1.2: nobody is named
        return Hello("", False)
    at, end = _vector(body, at, 2, "extensions")
    if end != len(body):
        raise _Malformed("bytes behind the extensions")
    return _read_extensions(body, at, end)


def _read_extensions(body: bytes, at: int, end: int) -> Hello:
    sni, ech = "", False
    seen: set[int] = set()
    while at < end:
        start = at + 4
        if start > end:
            raise _Malformed("hello ends inside its extension")
        number = body[at] << 8 | body[at + 1]
        at = start + (body[at + 2] << 8 | body[at + 3])
        if at > end:
            raise _Malformed("hello ends inside its extension")
        if number in seen:
            raise _Malformed(f"extension {number} twice")
        seen.add(number)
        if number == _SERVER_NAME:
            sni = _server_name(body[start:at])
        elif number in _ECH:
            ech = True
    return Hello(sni, ech)


def _server_name(value: bytes) -> str:
    at, end = _vector(value, 0, 2, "server name")
    if at == end:
        raise _Malformed("no server name in its extension")
    kind = value[at]
    start, stop = _vector(value, at + 1, 2, "server name")
    if stop != end or end != len(value):
        raise _Malformed("more than one server name")
    if kind:
        raise _Malformed(f"server name of type {kind}")
    name = value[start:stop]
    if len(name) > _NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise _Malformed("server name that is no host name")
    return name.decode().lower().removesuffix(".")


def differs(found: Hello | NotTls, host: str) -> str:
    """Why what a client sends first does not show that it means `host`; empty where it does."""
    if isinstance(found, NotTls):
        return f"no tls: {found.why}"
    if found.ech:
        return "encrypted client hello"
    if not found.sni:
        return "no server name"
    return "" if found.sni == host.lower().removesuffix(".") else f"server name `{found.sni}`"
