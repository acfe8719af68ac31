"""The ClientHello: real ones are read, in whatever pieces; anything else is said to be something else, and never a crash.

OpenSSL is the oracle: what it takes for the server's name we must not take for another one.
"""

import contextlib
import random
import ssl
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.core.clienthello import HELLO_BYTES_MAX, RECORDS_MAX, Hello, NotTls, look
from tests.support.certificates import Authority
from tests.support.hellos import body, ech, made, message, real, records, sni, vector

HOST = "api.example.com"
TLS = {
    "usual": real(HOST),
    "with alpn": real(HOST, alpn=("h2", "http/1.1")),
    "tls 1.3 only": real(HOST, lowest=ssl.TLSVersion.TLSv1_3),
    "a long name": real(".".join(["a" * 60] * 4)),
}
REAL = TLS["usual"]


def named(data: bytes) -> str:
    found = look(data)
    assert isinstance(found, Hello), found
    return found.sni


@pytest.mark.parametrize("which", TLS)
def test_a_real_hello_says_whom_it_wants(which: str) -> None:
    data = TLS[which]
    assert look(data) == Hello(".".join(["a" * 60] * 4) if which == "a long name" else HOST, ech=False)
    assert look(bytearray(data)) == look(data)
    assert look(data + b"\x17\3\3\0\1x") == look(data)  # early data is the origin's to read


def test_a_hello_without_a_name_has_none() -> None:
    assert look(real(None)) == Hello("", ech=False)
    assert look(made()) == Hello("", ech=False)
    assert look(records(message(body(None)))) == Hello("", ech=False)
    assert look(records(message(body(None, version=0x0301)))) == Hello("", ech=False)


def test_case_and_a_dot_at_the_end_are_no_part_of_the_name() -> None:
    assert named(made(sni(b"API.Example.COM."))) == HOST
    assert named(made(sni(b"xn--bcher-kva.example"))) == "xn--bcher-kva.example"
    assert named(made(sni(b"_dmarc.example.com"))) == "_dmarc.example.com"


@pytest.mark.parametrize("number", [0xFE0D, 0xFD00, 0xFFCE, 0xFE08, 0xFE0A])
def test_a_hello_that_may_hide_another_says_so(number: int) -> None:
    assert look(made(sni(HOST.encode()), ech(number))) == Hello(HOST, ech=True)
    assert look(made(ech(number))) == Hello("", ech=True)


@pytest.mark.parametrize("which", TLS)
def test_every_beginning_of_a_hello_asks_for_more(which: str) -> None:
    data, asked = TLS[which], []
    for size in range(len(data)):
        needed = look(data[:size])
        assert isinstance(needed, int), (size, needed)
        assert size < needed <= len(data)
        asked.append(needed)
    assert asked == sorted(asked)
    assert set(asked) == {5, len(data)}, "it looks again only when there is more to see"


sizes = st.lists(st.integers(1, 90), max_size=12)


@given(which=st.sampled_from(sorted(TLS)), cut=sizes)
def test_records_may_cut_a_hello_anywhere(which: str, cut: list[int]) -> None:
    whole = TLS[which]
    inner = whole[5:]
    while sum(cut) >= len(inner):
        cut = cut[:-1]
    data = records(inner, *cut)
    assert look(data) == look(whole)
    for size in range(0, len(data), 7):
        needed = look(data[:size])
        assert isinstance(needed, int)
        assert size < needed <= len(data)


def test_a_hello_ends_within_its_bounds() -> None:
    room = HELLO_BYTES_MAX - 5
    padding = room - len(message(body([sni(HOST.encode()), (21, b"")])))
    fits = records(message(body([sni(HOST.encode()), (21, bytes(padding))])))
    assert len(fits) == HELLO_BYTES_MAX
    assert named(fits) == HOST
    longer = records(message(body([sni(HOST.encode()), (21, bytes(padding + 1))])))
    assert look(longer) == look(longer[:5]) == NotTls("hello of more than 16384 bytes")
    inner = REAL[5:]
    assert named(records(inner, *[1] * (RECORDS_MAX - 1))) == HOST
    assert look(records(inner, *[1] * RECORDS_MAX)) == NotTls("hello in more than 64 records")


ODD = {
    "no byte of a handshake": (b"GET / HTTP/1.1", "not a tls handshake"),
    "an old major version": (b"\x16\2\0\0\5", "tls record version 2"),
    "ssl 3": (b"\x16\3\0\0\5", "tls record version 3.0"),
    "a version that is not there yet": (b"\x16\3\4\0\5", "tls record version 3.4"),
    "a record of nothing": (b"\x16\3\1\0\0", "tls record of 0 bytes"),
    "a record that is too long": (b"\x16\3\1\x40\1", "tls record of 16385 bytes"),
    "another message": (records(message(body([]), kind=11)), "handshake message of type 11"),
    "an alert after half of it": (records(REAL[5:100]) + records(b"\2\x28", kind=21), "another record inside the hello"),
    "a second hello behind it": (records(REAL[5:] + REAL[5:]), "bytes behind the hello in its record"),
    "a byte behind it": (records(REAL[5:] + b"\0"), "bytes behind the hello in its record"),
    "a version of the hello": (records(message(body([], version=0x0304))), "hello version 3.4"),
    "a session id": (records(message(body([], session=bytes(33)))), "session id of more than 32 bytes"),
    "no suites": (records(message(body([], suites=b""))), "cipher suites of 0 bytes"),
    "half a suite": (records(message(body([], suites=b"\x13"))), "cipher suites of 1 bytes"),
    "no compression": (records(message(body([], compression=b""))), "no compression method"),
    "bytes behind the extensions": (records(message(body([], behind=b"\0"))), "bytes behind the extensions"),
    "half an extension": (records(message(body(None, behind=vector(2, b"\0\0\0")))), "hello ends inside its extension"),
    "an extension that is too long": (
        records(message(body(None, behind=vector(2, b"\0\1\0\5ab")))), "hello ends inside its extension",
    ),
    "an extension twice": (made((10, b""), sni(HOST.encode()), (10, b"")), "extension 10 twice"),
    "the name's extension twice": (made(sni(HOST.encode()), sni(HOST.encode())), "extension 0 twice"),
    "two names": (made(sni(HOST.encode(), b"other.test")), "more than one server name"),
    "bytes behind the names": (made((0, sni(HOST.encode())[1] + b"\0")), "more than one server name"),
    "no name": (made((0, b"\0\0")), "no server name in its extension"),
    "an extension for servers": (made((0, b"")), "hello ends inside its server name"),
    "a name of nothing": (made(sni(b"")), "server name that is no host name"),
    "a name of another type": (made(sni(HOST.encode(), kind=2)), "server name of type 2"),
    "a name with a zero": (made(sni(b"api.example.com\0.evil.test")), "server name that is no host name"),
    "a name with a space": (made(sni(b"api.example.com ")), "server name that is no host name"),
    "a name with a line": (made(sni(b"api.example.com\n")), "server name that is no host name"),
    "a name that is not ascii": (made(sni("bücher.example".encode())), "server name that is no host name"),
    "a name with an empty label": (made(sni(b"api..example.com")), "server name that is no host name"),
    "a name that is too long": (made(sni(b"a." * 127 + b"ab")), "server name that is no host name"),
    "a star": (made(sni(b"*.example.com")), "server name that is no host name"),
}  # fmt: skip


@pytest.mark.parametrize("which", ODD)
def test_what_has_no_one_meaning_is_not_tls(which: str) -> None:
    data, why = ODD[which]
    assert look(data) == NotTls(why)


def test_a_body_that_ends_anywhere_is_not_tls() -> None:
    """The header fits what is there, and what is there is cut: at every byte but where the extensions would begin."""
    inner = REAL[9:]
    whole = {size for size in range(len(inner)) if not isinstance(look(records(message(inner[:size]))), NotTls)}
    start_of_extensions = 34 + 1 + inner[34]
    start_of_extensions += 2 + struct.unpack_from("!H", inner, start_of_extensions)[0]
    start_of_extensions += 1 + inner[start_of_extensions]
    assert whole == {start_of_extensions}
    assert look(records(message(inner[:start_of_extensions]))) == Hello("", ech=False)


# -- against OpenSSL -------------------------------------------------------------------------------------------------


class Server:
    """What an OpenSSL server takes for the name."""

    def __init__(self, folder: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*Authority(folder).issue("origin"))
        self._context.sni_callback = self._asked
        self._seen: list[str | None] = []

    def _asked(self, _: object, name: str | None, __: object) -> int:
        self._seen.append(name)
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED  # what comes after it does not matter

    def name(self, data: bytes) -> str | None:
        """Empty where it takes the hello and no name, None where it does not take the hello."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(data)
        self._seen.clear()
        with contextlib.suppress(ssl.SSLError, UnicodeError, ValueError):
            self._context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        return (self._seen[0] or "") if self._seen else None


def changed(rng: random.Random, data: bytes) -> bytes:
    """One or a few small changes, at lengths and names more often than elsewhere."""
    out = bytearray(data)
    at_name = data.find(HOST.encode())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        anywhere, in_lengths, near_name = rng.randrange(len(out)), rng.randrange(12), max(0, at_name + rng.randrange(-12, 20))
        at = min(len(out) - 1, rng.choice((anywhere, in_lengths, near_name)))
        match rng.randrange(6):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at : at + 1] = b""
            case 3:
                out[at:at] = bytes([rng.randrange(256)])
            case 4:
                part = out[at : at + rng.randrange(1, 60)]
                out[at:at] = part
            case _:
                del out[at:]
        if not out:
            return b""
    return bytes(out)


def mended(rng: random.Random, data: bytes) -> bytes:
    """A changed body with a header that fits, so that the change is met deeper."""
    return records(message(changed(rng, data[9:]) or b"\0"))


def test_openssl_never_takes_another_name_than_we_do(tmp_path: Path) -> None:
    rng, server = random.Random(5), Server(tmp_path)
    seeds = [*TLS.values(), made(sni(HOST.encode()), (10, b"\0\2\0\x1d"), (43, b"\2\3\4")), records(REAL[5:], 3, 50, 9)]
    agreed = refused = 0
    for number in range(20_000):
        seed = rng.choice(seeds)
        data = changed(rng, seed) if number % 2 else mended(rng, seed)
        found = look(data)
        if isinstance(found, Hello):
            theirs = server.name(data)
            if theirs is not None:
                assert theirs.lower().removesuffix(".") == found.sni, data.hex()
                agreed += 1
        elif isinstance(found, NotTls):
            assert 0 < len(found.why) < 80
            assert "\n" not in found.why
            refused += 1
        else:
            assert len(data) < found <= HELLO_BYTES_MAX
    assert agreed > 1_000
    assert refused > 5_000


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x16\3\1", REAL[:9], REAL[:60]]))
def test_any_bytes_have_an_answer(data: bytes, before: bytes) -> None:
    found = look(before + data)
    assert isinstance(found, Hello | NotTls) or len(before + data) < found <= HELLO_BYTES_MAX
