"""What a connection keeps of its last request: the same head means the same, a caller is only believed while identity does."""

from types import SimpleNamespace
from typing import Any

import pytest

from enforcers.core.http.fields import BadRequest
from enforcers.core.http.forward import request_head, traced_head
from enforcers.doors.egress.identify import Held
from enforcers.doors.egress.last import Last
from tests.support.httpfuzz import GOOD, read_request

HEAD = b"GET http://example.com/%b HTTP/1.1\r\nHost: example.com\r\nProxy-Authorization: %b\r\n\r\n"
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
        last.read(HEAD % (path, b"a"))
        assert who(last, desk) == "a"
    assert desk.asked == [b"a"]
    last.read(HEAD % (b"1", b"b"))
    assert who(last, desk) == "b"
    last.read(HEAD % (b"1", b"a"))
    assert (who(last, desk), desk.asked) == ("a", [b"a", b"b", b"a"])


def test_nobody_is_believed_when_identity_has_forgotten_or_its_time_is_up() -> None:
    last, desk = Last(), Desk(a=9.0)
    last.read(HEAD % (b"1", b"a"))
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
    last.read(HEAD % (b"1", b"a"))
    assert who(last, desk) == "a"
    for bad in (b"GET / HTTP/1.1\r\n\r\n", HEAD % (b"1", b"a\x01"), (HEAD % (b"1", b"a")).replace(b"example", b"exa mple", 1)):
        with pytest.raises(BadRequest):
            last.read(bad)
        assert last.head == b""
    last.read(HEAD % (b"1", b"a"))
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
