"""Requests that a door must refuse for their form: malformed, smuggled, or with two readings.

`table(AUTHORITY, credential)` makes them for an origin that listens there, so that a test may send the same ones through a door
and look at what its origin saw, which must be nothing. Every one has a right credential where it has a place for one: none is
refused for that.
"""

from typing import NamedTuple

CREDENTIAL = b"Basic cmVzZWFyY2hlcjpzZWNyZXQ="


class Malformed(NamedTuple):
    """One request, the status that it gets, and the short word that the record has for it."""

    name: str
    data: bytes
    status: int
    code: str


def table(authority: bytes = b"example.com:8080", credential: bytes = CREDENTIAL) -> list[Malformed]:
    """The table; `authority` is HOST:PORT of an origin."""
    host, _, port = authority.rpartition(b":")
    auth = b"Proxy-Authorization: " + credential + b"\r\n"
    rows: list[Malformed] = []

    def raw(name: str, data: bytes, code: str, status: int = 400) -> None:
        rows.append(Malformed(name, data, status, code))

    def fields(name: str, lines: bytes, code: str, status: int = 400, *, method: bytes = b"POST", body: bytes = b"") -> None:
        """One with these lines in an otherwise good head."""
        head = method + b" http://" + authority + b"/x HTTP/1.1\r\nHost: " + authority + b"\r\n" + auth
        raw(name, head + lines + b"\r\n" + body, code, status)

    def first(name: str, line: bytes, code: str, status: int = 400) -> None:
        """One with this first line over good fields."""
        raw(name, line + b"\r\nHost: " + authority + b"\r\n" + auth + b"\r\n", code, status)

    def target(name: str, text: bytes, code: str, *, said: bytes = b"") -> None:
        """One with this target, and a `Host` that says the same as far as that can be said."""
        said = said or text.partition(b"://")[2].partition(b"/")[0] or authority
        raw(name, b"GET " + text + b" HTTP/1.1\r\nHost: " + said + b"\r\n" + auth + b"\r\n", code)

    def connect(name: str, text: bytes, code: str, *, lines: bytes = b"", said: bytes = b"") -> None:
        raw(name, b"CONNECT " + text + b" HTTP/1.1\r\nHost: " + (said or text) + b"\r\n" + auth + lines + b"\r\n", code)

    url = b"http://" + authority + b"/x"

    # who the request is for
    fields("two hosts that differ", b"Host: evil.example\r\n", "two-hosts")
    fields("two hosts that agree", b"Host: " + authority + b"\r\n", "two-hosts")
    raw("no host", b"GET " + url + b" HTTP/1.1\r\n" + auth + b"\r\n", "no-host")
    raw("an empty host field", b"GET " + url + b" HTTP/1.1\r\nHost:\r\n" + auth + b"\r\n", "no-host")
    target("a host that is not the target's", url, "host-mismatch", said=b"evil.example:" + port)
    target("a port that is not the target's", url, "host-mismatch", said=host + b":1")
    target("a host field without the target's port", b"http://example.com:8080/", "host-mismatch", said=b"example.com")
    target("a host field with a user", url, "user-info", said=b"user@" + authority)
    target("a host field with two hosts", url, "port", said=authority + b", evil.example")
    target("a host field that is not ascii", url, "host-mismatch", said=b"ex\xc3\xa4mple.com")
    target("a host field in octal", b"http://127.0.0.1:" + port + b"/", "address", said=b"0177.0.0.1:" + port)
    target("a host field with a space behind it", url, "port", said=authority + b" ")
    fields("a host with an underscore for its dash", b"Proxy_Authorization: x\r\n", "odd-name")
    fields("two credentials", auth, "two-credentials")

    # how long the body is
    fields("two lengths that differ", b"Content-Length: 5\r\nContent-Length: 6\r\n", "two-lengths", body=b"hello!")
    fields("two lengths that agree", b"Content-Length: 5\r\nContent-Length: 5\r\n", "two-lengths", body=b"hello")
    fields("a list of lengths", b"Content-Length: 5, 5\r\n", "content-length", body=b"hello")
    fields("a length with a plus", b"Content-Length: +5\r\n", "content-length", body=b"hello")
    fields("a length with a minus", b"Content-Length: -5\r\n", "content-length", body=b"hello")
    fields("a length with two spaces before it", b"Content-Length:  5\r\n", "content-length", body=b"hello")
    fields("a length with a tab before it", b"Content-Length:\t5\r\n", "content-length", body=b"hello")
    fields("a length in hexadecimal", b"Content-Length: 0x5\r\n", "content-length", body=b"hello")
    fields("a length with a zero before it", b"Content-Length: 05\r\n", "content-length", body=b"hello")
    fields("a length with a fraction", b"Content-Length: 5.0\r\n", "content-length", body=b"hello")
    fields("an empty length", b"Content-Length: \r\n", "content-length")
    fields("a length of twenty digits", b"Content-Length: 18446744073709551621\r\n", "content-length", body=b"hello")
    fields("a length with an underscore in its name", b"Content_Length: 5\r\n", "odd-name", body=b"hello")
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    fields("a length and chunks", both, "length-and-coding", body=b"0\r\n\r\n")
    fields("chunks and a length of zero", b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "length-and-coding")
    for name, value in (
        ("identity, chunked", b"identity, chunked"), ("chunked, identity", b"chunked, identity"), ("gzip", b"gzip"),
        ("gzip, chunked", b"gzip, chunked"), ("chunked twice in a list", b"chunked, chunked"), ("Chunked", b"Chunked"),
        ("a quoted chunked", b'"chunked"'), ("chunked with a parameter", b"chunked;q=1"), ("identity", b"identity"),
        ("chunked behind a tab", b"\tchunked"), ("an empty coding", b""), ("xchunked", b"xchunked"),
    ):  # fmt: skip
        fields(f"the coding {name}", b"Transfer-Encoding: " + value + b"\r\n", "transfer-encoding", body=b"0\r\n\r\n")
    twice = b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"
    fields("two codings", twice, "two-codings", body=b"0\r\n\r\n")
    fields("a coding with an underscore in its name", b"Transfer_Encoding: chunked\r\n", "odd-name", body=b"0\r\n\r\n")
    old = b"POST " + url + b" HTTP/1.0\r\nHost: " + authority + b"\r\n" + auth
    raw("chunks in HTTP/1.0", old + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "old-coding")
    fields("a TRACE with a body", b"Content-Length: 5\r\n", "body", method=b"TRACE", body=b"hello")
    fields("a connection that names the length", b"Connection: close, Content-Length\r\n", "connection-names")
    fields("a connection that names the host", b"Connection: Host\r\n", "connection-names")
    fields("a connection that is no list", b"Connection: close;x\r\n", "connection")

    # lines
    bare = auth.replace(b"\r\n", b"\n")
    raw("bare LF everywhere", b"GET " + url + b" HTTP/1.1\nHost: " + authority + b"\n" + bare + b"\n", "bare-lf")
    fields("a bare LF in the fields", b"X: a\nTransfer-Encoding: chunked\r\n", "bare-lf")
    raw("a bare LF in the first line", b"GET " + url + b" HTTP/1.1\nHost: " + authority + b"\r\n" + auth + b"\r\n", "bare-lf")
    fields("a bare CR in a value", b"X: a\rTransfer-Encoding: chunked\r\n", "bare-cr")
    fields("a CR before CRLF", b"X: a\r\r\n", "bare-cr")
    fields("a folded line", b"X: a\r\n b\r\n", "folded")
    fields("a line folded with a tab", b"Transfer-Encoding:\r\n\tchunked\r\n", "folded")
    raw("a fold behind the first line", b"GET " + url + b" HTTP/1.1\r\n x\r\n" + auth + b"\r\n", "folded")
    fields("a space before the colon", b"Content-Length : 5\r\n", "space-before-colon", body=b"hello")
    fields("a tab before the colon", b"Transfer-Encoding\t: chunked\r\n", "space-before-colon", body=b"0\r\n\r\n")
    fields("a nul in a value", b"X: a\0b\r\n", "nul")
    fields("a nul in a name", b"X\0: a\r\n", "nul")
    fields("a vertical tab before a value", b"Transfer-Encoding: \x0bchunked\r\n", "control")
    fields("a form feed in a value", b"X: a\x0cb\r\n", "control")
    fields("a delete character in a value", b"X: a\x7fb\r\n", "control")
    fields("a line without a colon", b"X\r\n", "field")
    fields("a line without a name", b": x\r\n", "field")
    fields("a name in parentheses", b"(X): x\r\n", "field")
    fields("a name with a slash", b"X/Y: x\r\n", "field")
    fields("a name that is not ascii", b"Tr\xc3\xa4nsfer-Encoding: chunked\r\n", "field")
    fields("an empty line before the request", b"", "empty-line")
    rows[-1] = rows[-1]._replace(data=b"\r\n" + rows[-1].data)

    # the first line
    for name, version in (
        ("HTTP/1.2", b"HTTP/1.2"), ("http/1.1", b"http/1.1"), ("HTTP/1.10", b"HTTP/1.10"), ("HTTP/01.1", b"HTTP/01.1"),
        ("HTTP/1", b"HTTP/1"), ("HTTP/1,1", b"HTTP/1,1"), ("ICY/1.1", b"ICY/1.1"), ("HTTP/1.+1", b"HTTP/1.+1"),
    ):  # fmt: skip
        first(f"the version {name}", b"GET " + url + b" " + version, "version")
    for name, version in (("HTTP/2.0", b"HTTP/2.0"), ("HTTP/0.9", b"HTTP/0.9"), ("HTTP/3.0", b"HTTP/3.0")):
        first(f"the version {name}", b"GET " + url + b" " + version, "version", 505)
    raw("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "version", 505)
    raw("a hello of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "not-http")
    first("no version", b"GET " + url, "request-line")
    first("two spaces before the target", b"GET  " + url + b" HTTP/1.1", "request-line")
    first("two spaces before the version", b"GET " + url + b"  HTTP/1.1", "request-line")
    first("a space behind the version", b"GET " + url + b" HTTP/1.1 ", "request-line")
    first("a space in the target", b"GET " + url + b" y HTTP/1.1", "request-line")
    first("a tab in the first line", b"GET\t" + url + b" HTTP/1.1", "request-line")
    first("a target that is not ascii", b"GET " + url + b"\xc3\xa4 HTTP/1.1", "not-ascii")
    first("a method in parentheses", b"G(E)T " + url + b" HTTP/1.1", "method")
    first("a method in lower case", b"get " + url + b" HTTP/1.1", "method", 501)
    first("a method that nobody knows", b"FROBNICATE " + url + b" HTTP/1.1", "method", 501)
    first("the method that begins HTTP/2", b"PRI " + url + b" HTTP/1.1", "method", 501)
    first("a method that is too long", b"M" * 33 + b" " + url + b" HTTP/1.1", "long-method", 501)
    first("a target that is too long", b"GET " + url + b"x" * 16384 + b" HTTP/1.1", "long-target", 414)
    fields("too many fields", b"X: y\r\n" * 129, "many-fields", 431)
    fields("a head that is too long", b"X: " + b"y" * 70_000 + b"\r\n", "long-head", 431)
    fields("a name that is too long", b"X" * 257 + b": y\r\n", "long-name", 431)

    # the target
    target("origin form", b"/x", "origin-form", said=authority)
    first("asterisk form", b"OPTIONS * HTTP/1.1", "asterisk-form")
    target("authority form without CONNECT", authority, "target", said=authority)
    target("absolute https", b"https://" + authority + b"/", "https-form")
    target("absolute ftp", b"ftp://" + authority + b"/", "scheme")
    target("absolute ws", b"ws://" + authority + b"/", "scheme")
    target("one slash", b"http:/" + authority + b"/", "target", said=authority)
    target("a fragment", url + b"#top", "fragment")
    target("a user", b"http://user@" + authority + b"/", "user-info", said=authority)
    target("a user and a password", b"http://user:secret@" + authority + b"/", "user-info", said=authority)
    target("a user that is a host", b"http://allowed.example:80@" + authority + b"/", "user-info", said=authority)
    target("a backslash behind the host", b"http://" + authority + b"\\@evil.example/", "target", said=authority)
    target("a backslash in the path", b"http://" + authority + b"/a\\b", "backslash")
    target("dots in the path", b"http://" + authority + b"/public/../private", "dot-segment")
    target("escaped dots in the path", b"http://" + authority + b"/public/%2e%2E/private", "dot-segment")
    target("no host in the target", b"http:///x", "no-host", said=authority)
    target("no host but a port", b"http://:" + port + b"/x", "no-host")
    target("an escaped host", b"http://ex%61mple.com/", "host")
    target("two dots in the host", b"http://example..com/", "host")
    target("two dots behind the host", b"http://example.com../", "host")
    target("a label of 64 characters", b"http://" + b"a" * 64 + b".example/", "host")
    target("a host of 254 characters", b"http://" + b"abcdefg." * 31 + b"abcdef/", "host")
    target("a host with a semicolon", b"http://example.com;evil.example/", "host")
    for name, text in (
        ("zero", b"0"), ("65536", b"65536"), ("with a plus", b"+80"), ("with a minus", b"-1"), ("empty", b""),
        ("with a zero", b"080"), ("in words", b"http"), ("in hexadecimal", b"0x50"), ("of six digits", b"100080"),
    ):  # fmt: skip
        target(f"a port {name}", b"http://" + host + b":" + text + b"/", "port")
    target("two ports", b"http://" + host + b":80:80/", "host")
    for name, text in (
        ("in decimal", b"2130706433"), ("in octal", b"0177.0.0.1"), ("in one octal number", b"017700000001"),
        ("in hexadecimal", b"0x7f000001"), ("in hexadecimal parts", b"0x7f.0.0.1"), ("short by one", b"127.0.1"),
        ("short by two", b"127.1"), ("with five parts", b"127.0.0.0.1"), ("above 255", b"127.0.0.256"),
        ("with zeros", b"127.000.000.001"),
        ("with a dot behind it", b"127.0.0.1."), ("that ends in a number", b"example.1"), ("that is 0x", b"0x"),
        ("mapped into ipv6", b"[::ffff:127.0.0.1]"), ("mapped into ipv6 in hexadecimal", b"[::ffff:7f00:1]"),
        ("with ipv4 at its end", b"[64:ff9b::127.0.0.1]"), ("with a zone", b"[fe80::1%25eth0]"), ("of the future", b"[v1.x]"),
        ("with too many colons", b"[1::2::3]"), ("that is empty in brackets", b"[]"),
    ):  # fmt: skip
        target(f"an address {name}", b"http://" + text + b":" + port + b"/", "address")
    target("an ipv6 address without brackets", b"http://::1:" + port + b"/", "host")
    target("an ipv6 address with half its brackets", b"http://[::1:" + port + b"/", "host")
    target("full-width digits, escaped", b"http://%EF%BC%91.1.1.1/", "address")

    # tunnels
    connect("a tunnel without a port", host, "connect-target")
    connect("a tunnel with a path", authority + b"/x", "connect-target", said=authority)
    connect("a tunnel with a query", authority + b"?x", "connect-target", said=authority)
    connect("a tunnel in absolute form", b"https://" + authority + b"/", "connect-target", said=authority)
    connect("a tunnel to port 0", host + b":0", "port")
    connect("a tunnel to port 65536", host + b":65536", "port")
    connect("a tunnel with a user", b"user@" + authority, "user-info", said=authority)
    connect("a tunnel to no host", b":443", "no-host")
    connect("a tunnel to an address in decimal", b"2130706433:443", "address")
    connect("a tunnel to a mapped address", b"[::ffff:7f00:1]:443", "address")
    connect("a tunnel with another host", authority, "host-mismatch", said=b"evil.example:443")
    connect("a tunnel with a body", authority, "body", lines=b"Content-Length: 5\r\n")
    connect("a tunnel with chunks", authority, "body", lines=b"Transfer-Encoding: chunked\r\n")

    # what a client may ask for
    fields("another expectation", b"Expect: 200-ok\r\n", "expect", 417)
    fields("two expectations", b"Expect: 100-continue\r\nExpect: 100-continue\r\n", "two-expects")
    upgrade = b"Connection: upgrade\r\nUpgrade: "
    fields("two protocols to upgrade to", upgrade + b"websocket, other\r\n", "upgrade", method=b"GET")
    fields("an upgrade with a body", upgrade + b"websocket\r\nContent-Length: 5\r\n", "upgrade-body", body=b"hello")
    fields("two upgrades", upgrade + b"websocket\r\nUpgrade: h2c\r\n", "two-upgrades", method=b"GET")
    fields("a trace that ends here", b"Max-Forwards: 0\r\n", "max-forwards", method=b"TRACE")
    return rows


class BadBody(NamedTuple):
    """A body in chunks that is refused, and the short word for it. Its head is a good one."""

    name: str
    data: bytes
    code: str


BODIES = [
    BadBody("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a size with a plus", b"+5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a size with a minus", b"-5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a space before a size", b" 5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a space behind a size", b"5 \r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a tab behind a size", b"5\t\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a size of seventeen digits", b"10000000000000005\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a size with an underscore", b"0_5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("an empty size", b"\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("no size but an extension", b";a=b\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a size that is no number", b"five\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("a bare LF behind a size", b"5\nhello\r\n0\r\n\r\n", "bare-lf"),
    BadBody("a bare CR in a size line", b"5\rx\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("an extension without a name", b"5;\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("an extension with a space", b"5; a=b\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    BadBody("an extension whose quote is open", b'5;a="b\r\nhello\r\n0\r\n\r\n', "chunk-size"),
    BadBody("an extension with a bare LF in a quote", b'5;a="\n"\r\nhello\r\n0\r\n\r\n', "bare-lf"),
    BadBody("an extension that is too long", b"5;a=" + b"b" * 1100 + b"\r\nhello\r\n0\r\n\r\n", "chunk-line"),
    BadBody("many extensions on small chunks", (b"1;a=" + b"b" * 900 + b"\r\nx\r\n") * 40, "chunk-waste"),
    BadBody("a chunk that is longer than its size", b"4\r\nhello\r\n0\r\n\r\n", "chunk-end"),
    BadBody("a chunk without its CRLF", b"5\r\nhello0\r\n\r\n", "chunk-end"),
    BadBody("a chunk that ends in a bare LF", b"5\r\nhello\n0\r\n\r\n", "chunk-end"),
    BadBody("a chunk that ends in two CR", b"5\r\nhello\r\r0\r\n\r\n", "chunk-end"),
    BadBody("a trailer without a colon", b"0\r\nx\r\n\r\n", "field"),
    BadBody("a folded trailer", b"0\r\nx: a\r\n b\r\n\r\n", "folded"),
    BadBody("a trailer with a space before its colon", b"0\r\nx : a\r\n\r\n", "space-before-colon"),
    BadBody("a trailer with a nul", b"0\r\nx: a\0b\r\n\r\n", "nul"),
    BadBody("a trailer that ends in a bare LF", b"0\r\nx: a\n\r\n\r\n", "bare-lf"),
    BadBody("trailers that end in two bare LF", b"0\r\nx: a\n\n", "bare-lf"),
    BadBody("trailers that are too long", b"0\r\nx: " + b"a" * 9000 + b"\r\n\r\n", "long-trailers"),
    BadBody("too many trailers", b"0\r\n" + b"x: a\r\n" * 129 + b"\r\n", "many-fields"),
]
