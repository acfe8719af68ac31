"""Heads: reading undoes writing, however the bytes come; what goes on means the same to h11."""

import string

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.core.http.forward import answer_framing, answer_head, request_head
from enforcers.core.http.framing import CHUNKED, LENGTH, NONE, UNTIL_CLOSE, Framing
from enforcers.core.http.head import BadAnswer, BadRequest, find_head, parse_answer, parse_request
from enforcers.core.http.target import read_target
from tests.support.httpfuzz import GOOD, by_h11, judge, mutants, read_request, why_refused
from tests.support.malformed import table

TOKEN = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
MEANT = frozenset((
    "host", "content-length", "transfer-encoding", "connection", "upgrade", "trailer", "keep-alive", "http2-settings",
    "expect", "te", "traceparent", "tracestate", "max-forwards",
))  # fmt: skip

names = (
    st.text(TOKEN, min_size=1, max_size=20)
    .filter(lambda name: (dashed := name.lower().replace("_", "-")) not in MEANT and not dashed.startswith("proxy-"))
    .map(str.encode)
)
values = st.binary(max_size=40).map(lambda raw: bytes(b for b in raw if b == 9 or (b >= 32 and b != 127)).strip(b" \t"))
labels = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=12)
hosts = st.one_of(
    st.lists(labels, max_size=3).map(lambda parts: ".".join([*parts, "example"])),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None).map(lambda address: f"[{address.compressed}]"),
).filter(lambda host: "." not in host or not host.startswith("["))
paths = st.text(string.ascii_letters + string.digits + "-_~!$&'()*+,=:@%|", max_size=20).map(lambda text: f"/{text}")
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD", b"PROPFIND"])
bodies = st.one_of(st.just(NONE), st.just(CHUNKED), st.integers(0, 10**18 - 1).map(lambda n: Framing(LENGTH, n)))


def framing_line(framing: Framing) -> list[bytes]:
    if framing is CHUNKED:
        return [b"Transfer-Encoding: chunked"]
    return [b"Content-Length: %d" % framing.length] if framing.kind == LENGTH else []


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes, str, int, str, list[tuple[bytes, bytes]], Framing]:
    """(the head, its method, host, port, path, plain fields, framing)"""
    method, host, port, path = draw(methods), draw(hosts), draw(st.integers(1, 65535)), draw(paths)
    fields = draw(st.lists(st.tuples(names, values), max_size=10))
    framing = draw(bodies)
    authority = f"{host}:{port}".encode()
    lines = [b"Host: " + authority, *framing_line(framing)]
    for name, value in fields:
        lines.insert(draw(st.integers(0, len(lines))), name + draw(st.sampled_from([b":", b": ", b":\t", b":   "])) + value)
    line = b"%b http://%b%b HTTP/1.1" % (method, authority, path.encode())
    return b"\r\n".join((line, *lines, b"", b"")), method, host, port, path, fields, framing


@given(requests())
def test_reading_undoes_writing(
    made: tuple[bytes, bytes, str, int, str, list[tuple[bytes, bytes]], Framing],
) -> None:
    head, method, host, port, path, fields, framing = made
    request = parse_request(head)
    where = read_target(request)
    assert (request.method.encode(), request.body) == (method, framing)
    assert (where.host, where.port, where.path) == (host, port, path)
    plain = sorted((name.lower(), value) for name, value in fields)
    assert sorted(one for one in request.headers if one[0].decode() not in MEANT) == plain
    assert why_refused(head) == ""


@given(requests())
def test_what_goes_on_is_what_came_with_another_first_line(
    made: tuple[bytes, bytes, str, int, str, list[tuple[bytes, bytes]], Framing],
) -> None:
    head, method, host, port, path, fields, framing = made
    request = parse_request(head)
    seen = by_h11(request_head(request, read_target(request)))
    assert seen is not None
    authority = (host if port == 80 else f"{host}:{port}").encode()
    assert (seen.method, seen.target, dict(seen.headers)[b"host"]) == (method, path.encode(), authority)
    passed = [(name, value) for name, value in seen.headers if name.decode() not in MEANT]
    assert sorted(passed) == sorted((name.lower(), value) for name, value in fields)
    said = [(name, value) for name, value in seen.headers if name in (b"content-length", b"transfer-encoding")]
    assert said == [(line.lower().split(b": ")[0], line.split(b": ")[1]) for line in framing_line(framing)]


@given(requests())
def test_every_proper_prefix_asks_for_more(
    made: tuple[bytes, bytes, str, int, str, list[tuple[bytes, bytes]], Framing],
) -> None:
    head = made[0]
    assert [find_head(head[:size], 1 << 16) for size in range(len(head))] == [0] * len(head)
    assert find_head(head + b"more", 1 << 16) == len(head)


def in_pieces(data: bytes, cuts: list[int]) -> str:
    """What a door that gets the bytes in pieces makes of them: `taken SIZE`, `more`, or `refused STATUS`."""
    buffer, seen = bytearray(), 0
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            buffer += data[start:end]
            if size := find_head(buffer, 4000, seen):
                read_target(parse_request(bytes(buffer[:size])))
                return f"taken {size}"
            seen = len(buffer)
    except BadRequest as fault:
        return f"refused {fault.status}"
    return "more"


ANY = st.one_of(
    requests().map(lambda made: made[0]),
    st.sampled_from([case.data for case in table()]),
    st.integers(0, 200).map(lambda seed: next(mutants(seed))),
)


@given(ANY, st.data())
def test_it_does_not_matter_how_a_head_is_cut(data: bytes, draws: st.DataObject) -> None:
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    assert in_pieces(data, cuts) == in_pieces(data, [])


def test_a_byte_at_a_time_is_as_good_as_all_at_once() -> None:
    for data in [*GOOD, *(case.data for case in table() if len(case.data) < 3000)]:
        assert in_pieces(data, list(range(1, len(data)))) == in_pieces(data, []), data


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_refusal(data: bytes) -> None:
    judge(data)
    judge(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + data + b"\r\n\r\n")
    judge(b"GET http://" + data + b"/ HTTP/1.1\r\nHost: " + data + b"\r\n\r\n")


def test_the_slow_reading_refuses_the_table_too() -> None:
    """An oracle that refuses nothing would agree with any parser that refuses."""
    ours_alone = {
        "method", "long-method", "long-target", "many-fields", "long-head", "long-name", "odd-name", "connection-names",
        "connection", "expect", "upgrade", "upgrade-body", "max-forwards", "content-length", "version", "host",
    }  # fmt: skip
    for case in table():
        if not why_refused(case.data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"):
            assert case.code in ours_alone, case


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes, list[tuple[bytes, bytes]], Framing]:
    """(the head, its status, reason, plain fields, framing)"""
    status = draw(st.sampled_from([200, 201, 206, 301, 400, 403, 404, 500, 503, 599]))
    reason = draw(values)
    fields = draw(st.lists(st.tuples(names, values), max_size=10))
    framing = draw(st.one_of(bodies.filter(lambda framing: framing is not NONE), st.just(UNTIL_CLOSE)))
    lines = [name + b": " + value for name, value in fields]
    lines[draw(st.integers(0, len(lines))) : 0] = framing_line(framing)
    return b"\r\n".join((b"HTTP/1.1 %d " % status + reason, *lines, b"", b"")), status, reason, fields, framing


@given(answers())
def test_an_answer_goes_back_as_it_came(made: tuple[bytes, int, bytes, list[tuple[bytes, bytes]], Framing]) -> None:
    head, status, reason, fields, framing = made
    assert find_head(head, 1 << 16, 0, BadAnswer) == len(head)
    answer = parse_answer(head, "GET")
    assert (answer.status, answer.reason, answer.body) == (status, reason, framing)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.receive_data(answer_head(answer))
    seen = client.next_event()
    assert isinstance(seen, h11.Response)
    assert (seen.status_code, bytes(seen.reason)) == (status, reason)
    passed = [(name, value) for name, value in seen.headers if name not in (b"content-length", b"transfer-encoding")]
    assert passed == [(name.lower(), value) for name, value in fields]
    assert (answer_framing(answer, 1) is CHUNKED) == ((b"transfer-encoding", b"chunked") in list(seen.headers))


@given(st.binary(max_size=200))
def test_no_answer_does_worse_than_a_fault(data: bytes) -> None:
    for head in (data, b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n", b"HTTP/1.1 " + data + b"\r\n\r\n"):
        try:
            if size := find_head(head, 1 << 16, 0, BadAnswer):
                parse_answer(head[:size], "GET")
        except BadAnswer as fault:
            assert fault.status == 502  # noqa: PT017


def test_the_generator_reaches_every_framing_and_every_kind_of_host() -> None:
    """A property nobody exercises proves nothing."""
    seen = set()

    @settings(max_examples=300, database=None, derandomize=True)
    @given(requests())
    def look(made: tuple[bytes, bytes, str, int, str, list[tuple[bytes, bytes]], Framing]) -> None:
        read = read_request(made[0])
        assert read is not None
        literal = read[1].literal
        seen.add((made[6].kind, literal.version if literal else 0))

    look()
    assert {(kind, version) for kind in "-cn" for version in (0, 4, 6)} == seen
