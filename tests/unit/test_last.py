"""What a connection keeps of its last request: the same head means the same, a caller is only believed while identity does."""

from types import SimpleNamespace
from typing import Any

import pytest

from enforcers.core.http.fields import BadRequest
from enforcers.core.http.forward import request_head, traced_head
from enforcers.doors.egress.identify import Held
from enforcers.doors.egress.last import CONNECT_BYTES_MAX, CONNECTS, Connects, Last
from tests.support.httpfuzz import GOOD, read_request

HEAD = b"GET http://example.com/%b HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: %b\r\n\r\n"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: %b\r\nCookie: hidden\r\n\r\n"
PEER = "192.0.2.1"
NOBODYS = Connects()
PARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-03"


class Desk:
    """Identity as a connection sees it: `right` are the values that it knows."""

    def __init__(self, **right: float) -> None:
        self.changes = 0
        self.right = {name.encode(): Held(SimpleNamespace(name=name), until) for name, until in right.items()}  # type: ignore[arg-type]
        self.asked: list[bytes | None] = []

    def held(self, value: bytes | None, _now_s: float) -> Held | None:
        """Who shows this."""
        self.asked.append(value)
        return self.right.get(value or b"")


def who(last: Last, desk: Desk, now_s: float = 1.0) -> str:
    caller: Any = last.caller(desk, now_s)  # type: ignore[arg-type]
    return caller.name if caller is not None else ""


def test_a_credential_that_is_said_again_is_not_looked_up_again() -> None:
    last, desk = Last(), Desk(a=9.0, b=9.0)
    for path in (b"1", b"2", b"3"):
        last.read(HEAD % (path, b"a"), NOBODYS, PEER)
        assert who(last, desk) == "a"
    assert desk.asked == [b"a"]
    last.read(HEAD % (b"1", b"b"), NOBODYS, PEER)
    assert who(last, desk) == "b"
    last.read(HEAD % (b"1", b"a"), NOBODYS, PEER)
    assert (who(last, desk), desk.asked) == ("a", [b"a", b"b", b"a"])


def test_nobody_is_believed_when_identity_has_forgotten_or_its_time_is_up() -> None:
    last, desk = Last(), Desk(a=9.0)
    last.read(HEAD % (b"1", b"a"), NOBODYS, PEER)
    assert (who(last, desk), who(last, desk, 8.9)) == ("a", "a")
    del desk.right[b"a"]
    assert who(last, desk) == "a", "it has not said so yet"
    desk.changes += 1
    assert who(last, desk) == ""
    desk.right[b"a"] = Held(SimpleNamespace(name="a"), 20.0)  # type: ignore[arg-type]
    assert who(last, desk) == "a"
    assert (who(last, desk, 20.0), len(desk.asked)) == ("a", 4), "its time is up: identity is asked, and answers for itself"


def test_a_head_that_is_no_good_is_never_taken_for_the_one_before() -> None:
    last, desk = Last(), Desk(a=9.0)
    last.read(HEAD % (b"1", b"a"), NOBODYS, PEER)
    assert who(last, desk) == "a"
    for bad in (b"GET / HTTP/1.1\r\n\r\n", HEAD % (b"1", b"a\x01"), (HEAD % (b"1", b"a")).replace(b"example", b"exa mple", 1)):
        with pytest.raises(BadRequest):
            last.read(bad, NOBODYS, PEER)
        assert last.head == b""
    last.read(HEAD % (b"1", b"a"), NOBODYS, PEER)
    assert (who(last, desk), len(desk.asked)) == ("a", 2)


@pytest.mark.parametrize("data", GOOD)
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_around_the_trace_makes_the_same_head(data: bytes, keep: bool) -> None:
    read = read_request(data)
    assert read is not None
    request, where, _ = read
    whole = request_head(request, where, PARENT, keep_tracestate=keep)
    assert [traced_head(request, where, PARENT, keep_tracestate=keep) for _ in range(2)] == [whole, whole]
    other = PARENT.replace(b"a", b"c")
    assert traced_head(request, where, other, keep_tracestate=keep) == whole.replace(PARENT, other)


def connected(connects: Connects, head: bytes, desk: Desk, peer: str = PEER, now_s: float = 1.0) -> tuple[Last, str]:
    """A new connection that says CONNECT, and who it is; what it asks is kept as a door does once that is known."""
    last = Last()
    last.read(head, connects, peer)
    name = who(last, desk, now_s)
    if name and last.asked is None:
        last.asked = SimpleNamespace(of=name)  # type: ignore[assignment]
        last.keep(connects, peer)
    return last, name


def test_the_next_tunnel_of_the_same_words_is_understood_without_reading_them() -> None:
    connects, desk = Connects(), Desk(a=9.0, b=9.0)
    first, _ = connected(connects, CONNECT % b"a", desk)
    second, name = connected(connects, CONNECT % b"a", desk)
    assert (name, second.asked is first.asked, desk.asked) == ("a", True, [b"a"])
    assert (second.request.method, second.request.target) == ("CONNECT", "example.com:443")
    assert second.where is first.where
    assert connected(connects, CONNECT % b"b", desk)[1] == "b"
    other, name = connected(connects, CONNECT % b"a", desk, "192.0.2.2")
    assert (name, other.asked is first.asked) == ("a", False), "another place is another question: it is recorded"
    assert connected(connects, CONNECT % b"c", desk)[1] == ""


def test_what_is_kept_of_a_tunnel_has_no_secret_and_no_field_of_its_head() -> None:
    connects, desk = Connects(), Desk(swordfish=9.0)
    connected(connects, CONNECT % b"swordfish", desk)
    ((request, *_),) = connects._new.values()
    said = repr([getattr(request, name) for name in request.__slots__]) + repr(list(connects._new))
    assert "swordfish" not in said
    assert "hidden" not in said
    assert request.headers == []


def test_a_tunnel_is_nobodys_when_identity_has_forgotten_and_its_credential_is_read_again() -> None:
    connects, desk = Connects(), Desk(a=9.0)
    connected(connects, CONNECT % b"a", desk)
    desk.changes += 1
    for _ in range(2):
        last, name = connected(connects, CONNECT % b"a", desk)
        assert (name, desk.asked.pop()) == ("a", b"a")
        assert (b"proxy-authorization", b"a") in last.request.headers, "whoever checks it needs it"
    del desk.right[b"a"]
    assert connected(connects, CONNECT % b"a", desk)[1] == ""
    desk.right[b"a"] = Held(SimpleNamespace(name="a"), 9.0)  # type: ignore[arg-type]
    assert connected(connects, CONNECT % b"a", desk, now_s=9.5)[1] == "a"
    assert desk.asked[-1] == b"a", "its time is up"


def test_tunnels_are_remembered_within_bounds() -> None:
    connects, desk = Connects(), Desk(a=9.0)
    for number in range(3 * CONNECTS):
        connected(connects, CONNECT.replace(b"example", b"e%d" % number) % b"a", desk)
        assert len(connects) <= 2 * CONNECTS
    before = len(desk.asked)
    connected(connects, CONNECT.replace(b"example", b"e%d" % (3 * CONNECTS - 1)) % b"a", desk)
    assert len(desk.asked) == before
    long = CONNECT.replace(b"hidden", b"x" * CONNECT_BYTES_MAX) % b"a"
    assert [connected(connects, long, desk)[1] for _ in range(2)] == ["a", "a"]
    assert len(desk.asked) == before + 2
