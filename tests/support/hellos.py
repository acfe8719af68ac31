"""ClientHellos for tests: real ones, from Python's own TLS, and ones put together by hand."""

import ssl
from collections.abc import Iterable

Extension = tuple[int, bytes]


def real(name: str | None, *, alpn: Iterable[str] = (), lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> bytes:
    """What a TLS client that wants `name` sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = lowest
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake ended before it began")


def vector(size: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return len(data).to_bytes(size) + data


def server_name(*names: bytes, kind: int = 0) -> bytes:
    """The value of the extension."""
    return vector(2, *(bytes([kind]) + vector(2, name) for name in names))


def sni(*names: bytes, kind: int = 0) -> Extension:
    return 0, server_name(*names, kind=kind)


def ech(number: int = 0xFE0D) -> Extension:
    """An outer ClientHello's: suite, config id, enc and payload of the usual sizes."""
    return number, b"\0" + b"\0\1\0\1" + b"\x2a" + vector(2, bytes(32)) + vector(2, bytes(144))


def body(
    extensions: Iterable[Extension] | None, *, version: int = 0x0303, session: bytes = bytes(32), suites: bytes = b"\x13\x01",
    compression: bytes = b"\0", behind: bytes = b"",
) -> bytes:  # fmt: skip
    """A ClientHello without its header; None: no extensions at all."""
    tail = b"" if extensions is None else vector(2, *(number.to_bytes(2) + vector(2, value) for number, value in extensions))
    return (
        version.to_bytes(2) + bytes(range(32)) + vector(1, session) + vector(2, suites) + vector(1, compression) + tail + behind
    )


def message(inner: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, inner)


def records(data: bytes, *sizes: int, kind: int = 22, version: bytes = b"\3\1") -> bytes:
    """Cut into records of these sizes, the rest in a last one."""
    out, at = b"", 0
    for size in (*sizes, len(data) - sum(sizes)):
        out += bytes([kind]) + version + vector(2, data[at : at + size])
        at += size
    return out


def made(*extensions: Extension) -> bytes:
    """A whole hello in one record."""
    return records(message(body(extensions)))
