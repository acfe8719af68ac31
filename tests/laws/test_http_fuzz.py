"""Requests mutated from a seed: no crash, nothing taken that a slow reading of our rules or h11 refuses, memory bounded."""

import itertools
import random

import pytest

from enforcers.core.http import head as heads
from enforcers.core.http import target as targets
from enforcers.core.http.fields import IN_REQUESTS, ONCE, ROLES, Role, sorter
from enforcers.core.http.forward import answer_head
from enforcers.core.http.head import BadAnswer, find_head, parse_answer
from tests.support.httpfuzz import mutants, read_request, run

MIB = 1 << 20
GROWTH_MAX = 64 * MIB
"""Bytes that a million of mutants may leave behind: all that is remembered has a bound below this."""


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_twenty_thousand_mutants_are_judged_as_other_readers_judge_them() -> None:
    seen = run(1, 20_000)
    assert seen["taken"] > 3000
    assert sum(seen.values()) == 20_000
    assert "disagreement" not in seen, "llhttp refuses what our rules take"
    assert len(seen) > 40, f"few rules were met: {sorted(seen)}"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_a_million_mutants_are_judged_as_other_readers_judge_them(part: int) -> None:
    run(1000 + part, 10_000)
    before = resident()
    seen = run(2000 + part, 100_000)
    assert "disagreement" not in seen
    assert seen["taken"] > 15_000
    assert resident() - before < GROWTH_MAX


def test_the_same_seed_makes_the_same_mutants() -> None:
    assert list(itertools.islice(mutants(7), 200)) == list(itertools.islice(mutants(7), 200))
    assert list(itertools.islice(mutants(7), 200)) != list(itertools.islice(mutants(8), 200))


def weaken_hosts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(heads, "SORT_REQUEST", sorter(len(Role), once=frozenset(ONCE) - {int(Role.HOST)}).sort)


def weaken_agreement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(targets, "_check_host", lambda value, where: None)


def weaken_codings(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(ROLES, b"transfer-encoding")
    patch.setattr(heads, "SORT_REQUEST", sorter(len(Role)).sort)


def weaken_addresses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(targets, "_ipv4", lambda host: (host, None))


def weaken_bodies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(heads, "_BODILESS", frozenset())


def forget() -> None:
    """Everything that is remembered of what was read by other rules: else tests that follow are answered by the weak ones."""
    remembered = [one for one in vars(targets).values() if hasattr(one, "cache_clear")]
    assert {targets._read, targets._authority} <= set(remembered)
    for one in remembered:
        one.cache_clear()
    IN_REQUESTS.clear()


@pytest.mark.parametrize(
    "weaken", [weaken_hosts, weaken_agreement, weaken_codings, weaken_addresses, weaken_bodies], ids=lambda one: one.__name__
)
def test_a_rule_that_is_left_out_is_noticed(weaken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    assert callable(weaken)
    weaken(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            run(1, 20_000)
    finally:
        forget()


def test_mutated_answers_are_a_fault_or_can_be_passed_on() -> None:
    rng = random.Random(5)
    good = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nConnection: close, x\r\n\r\n",
        b"HTTP/1.0 200\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    sources = mutants(5)
    taken = 0
    for _ in range(10_000):
        data = bytearray(rng.choice(good))
        scrap = next(sources)
        for _ in range(rng.randrange(3)):
            at, start = rng.randrange(len(data)), rng.randrange(len(scrap) + 1)
            data[at : at + rng.randrange(3)] = scrap[start : start + rng.randrange(1, 20)]
        try:
            size = find_head(data, MIB, 0, BadAnswer)
            if not size:
                continue
            answer = parse_answer(bytes(data[:size]), rng.choice(["GET", "HEAD"]), rng.choice([b"", b"websocket"]))
        except BadAnswer:
            continue
        back = answer_head(answer, rng.randrange(2))
        asked = "HEAD" if answer.body == heads.NONE else "GET"
        again = parse_answer(back, asked, answer.upgrade)
        assert (again.status, again.reason, again.onward) == (answer.status, answer.reason, answer.onward), data
        taken += 1
    assert taken > 1000


def test_pipelined_requests_are_told_apart() -> None:
    data = b"GET http://example.com/1 HTTP/1.1\r\nHost: example.com\r\n\r\nGET http://example.com/2 HTTP/1.1\r\n"
    read = read_request(data)
    assert read is not None
    assert (read[1].path, read[2]) == ("/1", b"GET http://example.com/2 HTTP/1.1\r\n")
