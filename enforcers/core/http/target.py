"""Where a request goes: one spelling of it, or a refusal.

    GET http://example.com:8080/x?y HTTP/1.1     absolute form, `http` only (RFC 9112, section 3.2.2)
    CONNECT example.com:443 HTTP/1.1             authority form, port included (section 3.2.3)

A host is a name of DNS, an IPv4 address of four decimal numbers, or an IPv6 address in brackets. What a resolver or a URL
parser might take for an address although it is not spelled so (decimal, octal, hexadecimal, short, mapped) is refused, whatever
it means. `Host` must say what the target says. No message repeats a target: it may hold a secret.
"""

import ipaddress
import re
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from enforcers.core.http.fields import BadRequest
from enforcers.core.http.head import Request
from schemas.vocabulary import host_uid, shown

HOST_BYTES_MAX: Final = 253
"""Bytes of a host's name (RFC 1035, section 2.3.4). A longer one is refused."""

LABEL_BYTES_MAX: Final = 63
"""Bytes between two dots of a host's name. A longer one is refused."""

CACHED_TARGET_BYTES_MAX: Final = 512
"""Bytes of a target whose reading is remembered; a longer one is read each time. With `_REMEMBERED` it bounds the memory."""

_REMEMBERED: Final = 4096

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([^:\[\]]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:[/;]|$)", re.IGNORECASE)
_DEFAULT_PORT: Final = 80
_TUNNEL_PORTS: Final = (80, 443)


class Where(NamedTuple):
    """Where a request goes, in one spelling. A tuple, as `Call` is: most requests have a path of their own."""

    scheme: str
    """`http` or `connect`."""
    host: str
    """Lower case, no dot at the end; an IPv6 address in brackets and in its short form."""
    port: int
    uid: str
    """`Host::"name:port"`."""
    authority: bytes
    """What `Host` says to the origin: without the port where that is the scheme's own."""
    literal: Address | None = None
    """The address, where the host is one."""
    path: str = ""
    """Without the query; empty for `connect`, and where the target has none."""
    query: bytes = b""
    """Without its `?`."""
    origin_form: bytes = b""
    """The target that the origin gets; empty for `connect`."""


def read_target(request: Request) -> Where:
    """Where `request` goes. Raises BadRequest."""
    target, host = request.target, request.host
    if len(target) + len(host or b"") > CACHED_TARGET_BYTES_MAX:
        return _read.__wrapped__(request.method, target, host)
    return _read(request.method, target, host)


@lru_cache(_REMEMBERED)
def _read(method: str, target: str, host: bytes | None) -> Where:
    where = _tunnel(target) if method == "CONNECT" else _absolute(method, target)
    if host is not None:
        _check_host(host, where)
    return where


def _tunnel(target: str) -> Where:
    if "/" in target or "?" in target or "#" in target:
        raise BadRequest("connect-target", "the target of `CONNECT` is not `HOST:PORT`")
    host, port, literal = _authority(target)
    if port is None:
        raise BadRequest("connect-target", "the target of `CONNECT` has no port")
    return Where(
        scheme="connect", host=host, port=port, uid=_uid(host, port), literal=literal, authority=f"{host}:{port}".encode()
    )


def _absolute(method: str, target: str) -> Where:
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise _form_fault(method, target)
    scheme, authority, path, query, fragment = found.groups()
    if scheme.lower() == "https":
        raise BadRequest("https-form", "an https target is asked for with `CONNECT HOST:443`, not in absolute form")
    if scheme.lower() != "http":
        raise BadRequest("scheme", f"scheme `{shown(scheme)}` is not spoken here: use http, or `CONNECT`")
    if fragment is not None:
        raise BadRequest("fragment", "the target has a fragment")
    if "\\" in path:
        raise BadRequest("backslash", "the target's path has a backslash, which some read as a slash")
    if ("." in path or "%" in path) and _DOT_SEGMENT.search(path):
        raise BadRequest("dot-segment", "the target's path has a segment `.` or `..`, which some resolve and some do not")
    host, port, literal = _authority(authority)
    port = port or _DEFAULT_PORT
    asterisk = method == "OPTIONS" and not path and query is None  # RFC 9112, section 3.2.4
    authority_sent = (host if port == _DEFAULT_PORT else f"{host}:{port}").encode()
    origin_form = b"*" if asterisk else f"{path or '/'}{query or ''}".encode()
    return Where("http", host, port, _uid(host, port), authority_sent, literal, path, (query or "")[1:].encode(), origin_form)


def _form_fault(method: str, target: str) -> BadRequest:
    if target == "*":
        return BadRequest("asterisk-form", f"this is a proxy: `{shown(method)} *` names no host")
    if target.startswith("/"):
        return BadRequest("origin-form", "this is a proxy: the target must be absolute, such as `http://example.com/`")
    return BadRequest("target", "the target is no absolute http target")


def _check_host(value: bytes, where: Where) -> None:
    """`Host` says what the target says. Without a port it means the scheme's own; a tunnel's may be that of http or https."""
    if not value.isascii():
        raise BadRequest("host-mismatch", "`Host` is not ascii")
    host, port, _ = _authority(value.decode())
    if port is None:
        port = where.port if where.scheme == "connect" and where.port in _TUNNEL_PORTS else _DEFAULT_PORT
    if host != where.host or port != where.port:
        raise BadRequest("host-mismatch", f"`Host` is not the target's `{shown(where.authority.decode())}`")


@lru_cache(_REMEMBERED)
def _uid(host: str, port: int) -> str:
    return host_uid(host, port)


@lru_cache(_REMEMBERED)  # what is good has some 270 characters at most, and nothing else is kept
def _authority(text: str) -> tuple[str, int | None, Address | None]:
    """(host, port, address) of `HOST` or `HOST:PORT`."""
    if "@" in text:
        raise BadRequest("user-info", "the target has a user before its host: show credentials in `Proxy-Authorization`")
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise BadRequest("host", f"`{shown(text)}` is no host with a port")
    host, port = found.groups()
    if port is not None and (not _PORT.fullmatch(port) or int(port) > 65535):
        raise BadRequest("port", f"port `{shown(port)}` is no plain number in 1..65535")
    name, literal = _host(host.lower())
    return name, int(port) if port is not None else None, literal


def _host(host: str) -> tuple[str, Address | None]:
    """(one spelling, the address if it is one) of a host."""
    if host.startswith("["):
        return _ipv6(host)
    if not host:
        raise BadRequest("no-host", "the target has no host")
    name = host.removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return _ipv4(host)
    if len(name) > HOST_BYTES_MAX:
        raise BadRequest("host", f"the host has {len(name)} bytes, limit is {HOST_BYTES_MAX}")
    if not _NAME.fullmatch(name) or max(map(len, name.split("."))) > LABEL_BYTES_MAX:
        raise BadRequest("host", f"host `{shown(host)}` is no name of dns: an international name is written `xn--...`")
    return name, None


def _ipv4(host: str) -> tuple[str, Address]:
    """What ends in a number is an address or nothing (WHATWG URL, section 3.5), and has one spelling."""
    try:
        return host, ipaddress.IPv4Address(host)
    except ValueError:
        raise BadRequest("address", f"address `{shown(host)}` is not spelled as four decimal numbers") from None


def _ipv6(host: str) -> tuple[str, Address]:
    inner = host[1:-1]
    if "." in inner or "%" in inner:
        raise BadRequest("address", f"address `{shown(host)}` has a part that is not hexadecimal")
    try:
        address = ipaddress.IPv6Address(inner)
    except ValueError:
        raise BadRequest("address", f"`{shown(host)}` is no ipv6 address") from None
    if address.ipv4_mapped is not None:
        raise BadRequest("address", f"address `{shown(host)}` is an ipv4 address in another spelling")
    return f"[{address.compressed}]", address
