"""What a caller is told that is refused: one JSON form for all, and whom to ask for what."""

import json

import pytest

from enforcers.core.refusal import PHRASES, POLICIES_SAID_MAX, Refusal, malformed, refusal, unknown
from tests.support.httpanswer import read_whole

FIELDS = ["call_id", "policy", "reason", "message", "ask", "agent", "action", "resource"]


@pytest.mark.parametrize(
    ("reason", "status"),
    [("forbid", 403), ("no-permit", 403), ("chain", 403), ("revoked", 403), ("paused", 403), ("address", 403),
     ("identity", 407), ("stale", 503), ("overloaded", 503), ("malformed", 400)],
)  # fmt: skip
def test_each_reason_has_its_status_and_says_whom_to_ask(reason: str, status: int) -> None:
    made = refusal(reason, call_id="ab" * 16, agent="reader", action="http:GET", resource='Host::"h:80"')
    found, headers, body = read_whole(made.encode(close=False))
    said = json.loads(body)
    assert found == status
    assert list(said) == FIELDS
    assert (said["reason"], said["call_id"]) == (reason, "ab" * 16)
    assert said["message"]
    assert said["ask"]
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert ("retry-after" in headers) == (status == 503)
    assert ("proxy-authenticate" in headers) == (status == 407)
    assert "connection" not in headers


def test_where_nothing_permits_the_policy_to_ask_for_is_named() -> None:
    made = refusal("no-permit", agent='a"b', action="http:POST", resource='Host::"h:80"')
    assert made.ask.endswith(
        '`permit (principal == Agent::"a\\"b", action == Action::"http:POST", resource == Host::"h:80");`'
    )


def test_a_connection_that_ends_says_so_and_head_gets_no_body() -> None:
    data = refusal("forbid").encode(close=True, body=False)
    status, headers, body = read_whole(data)
    assert (status, headers["connection"], body) == (403, "close", b"")
    assert int(headers["content-length"]) > 0


def test_a_body_names_no_more_policies_than_it_may() -> None:
    made = refusal("forbid", policies=tuple(f"p{n}" for n in range(1000)))
    said = json.loads(read_whole(made.encode(close=False))[2])
    assert said["policy"] == [f"p{n}" for n in range(POLICIES_SAID_MAX)]


def test_nothing_that_a_caller_wrote_can_end_a_line_of_the_answer() -> None:
    made = Refusal(status=403, reason="forbid", message="a\r\nX: y", ask='"\n', agent="\u2028é\r\n", resource="\x00")
    head, _, body = made.encode(close=False).partition(b"\r\n\r\n")
    assert b"X: y" not in head
    assert body.count(b"\n") == 1
    assert body.isascii()
    assert json.loads(body)["message"] == "a\r\nX: y"


@pytest.mark.parametrize("status", [407, 429, 503])
def test_who_is_not_known_is_told_what_to_do_and_named_as_it_claims(status: int) -> None:
    found, headers, body = read_whole(unknown(status, "too many", "read\ner").encode(close=False))
    said = json.loads(body)
    assert (found, said["reason"], said["message"], said["agent"]) == (status, "identity", "too many", "read\\ner")
    assert ("retry-after" in headers) == (status != 407)
    assert headers.get("proxy-authenticate", "").startswith("Basic") == (status == 407)


def test_every_status_that_is_answered_has_its_phrase() -> None:
    for status, phrase in PHRASES.items():
        line = malformed(status, "x").encode(close=True).partition(b"\r\n")[0]
        assert line == f"HTTP/1.1 {status} {phrase}".encode()
