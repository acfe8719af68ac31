"""The agents that a host hands to its doors: written before the board says so, or the board is stale."""

import pytest

from enforcers.core import obey
from schemas.agents import parse
from tests.support.entries import Journal
from tests.support.obeying import STALE_NS, Host, ready, registered

SECRET = f"scrypt$16384$8$1${'A' * 22}${'A' * 43}"


def agent(secret: str = SECRET) -> dict[str, object]:
    return {"owner": "o", "secret": secret, "subs": [["https://idp.example", "r-17"]], "spiffe": []}


def known(host: Host) -> dict[str, str]:
    """Name -> secret, as a door would read it."""
    return {one.name: one.secret for one in parse(host.agents, "agents.json").by_name.values()}


def journal_of(*names: str) -> Journal:
    journal = registered()
    for name in names:
        journal.put(f"agent/{name}", agent())
    return journal


def test_who_joins_writes_the_agents_before_its_board_has_anything() -> None:
    host = ready(journal_of("a", "b"))
    assert (known(host), host.agents_at) == ({"a": SECRET, "b": SECRET}, [0])
    assert (parse(host.agents, "x").epoch, host.board.epoch) == (3, 3)


def test_a_host_without_agents_says_so_to_its_doors() -> None:
    host = ready()
    assert (known(host), host.agents_at) == ({}, [0])


def test_an_agent_is_in_the_file_before_the_board_has_its_epoch() -> None:
    host = ready()
    host.hear(host.journal.put("agent/a", agent()))
    assert (known(host), host.agents_at, host.board.epoch) == ({"a": SECRET}, [0, 1], 2)


def test_one_that_is_rotated_or_removed_is_so_in_the_file_first() -> None:
    host = ready(journal_of("a", "b"))
    host.hear(host.journal.put("agent/a", agent("scrypt$2$8$1$new$new")), host.journal.remove("agent/b"))
    assert (known(host), host.agents_at) == ({"a": "scrypt$2$8$1$new$new"}, [0, 3, 4])


def test_what_is_no_agent_of_ours_is_written_once_and_known_to_nobody() -> None:
    host = ready(journal_of("a"))
    host.hear(host.journal.put("agent/a", {"owner": "o"}))
    assert known(host) == {}


def test_other_entries_leave_the_file_as_it_is() -> None:
    host = ready(journal_of("a"))
    host.hear(host.journal.put("pause", {"reason": "fire"}), host.journal.beat())
    assert host.agents_at == [0]


def test_an_agent_behind_a_gap_is_in_the_file_at_once_though_the_epoch_is_not_acknowledged() -> None:
    host = ready(journal_of("a"))
    host.journal.put("pause", {"reason": "fire"})
    host.journal.remove("pause")
    host.hear(host.journal.remove("agent/a"))
    assert (known(host), host.board.epoch, host.ack().epoch) == ({}, 2, 2)
    host.hear(host.journal.beat())
    assert host.ack().epoch == 5


def test_a_file_that_cannot_be_written_makes_the_board_stale_until_it_can() -> None:
    host = ready(journal_of("a"))
    host.agents_room = False
    host.hear(host.journal.remove("agent/a"), host.journal.beat())
    assert (host.obey.broken, host.obey.state, host.board.until_ns, host.board.epoch) == (True, "stale", 0, 2)
    assert host.obey.why == "agents.json: cannot be written: no space left on device"
    assert host.ack().epoch == 2
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert (host.obey.broken, host.obey.state, host.board.epoch) == (True, "stale", 2), "there is still no room"
    host.agents_room = True
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert (known(host), host.obey.state, host.obey.why, host.ack().epoch) == ({}, "ready", "", 3)


def test_who_joins_and_cannot_write_the_agents_gives_its_board_nothing() -> None:
    journal = journal_of("a")
    host = Host(journal)
    host.agents_room = False
    host.hear(*journal.whole(), journal.beat())
    assert (host.board.steps, host.obey.state) == (["fresh"], "joining")
    assert host.board.until_ns == 0


def test_more_agents_than_the_limit_make_the_board_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obey, "AGENTS_MAX", 2)
    host = ready(journal_of("a", "b"))
    host.hear(host.journal.put("agent/c", agent()), host.journal.beat())
    assert (host.obey.state, host.obey.why) == ("stale", "there are 3 agents, limit is 2")
    host.later(STALE_NS)
    assert host.board.until_ns == 0


def test_a_second_join_forgets_who_is_no_more() -> None:
    host = ready(journal_of("a", "b"))
    host.journal.remove("agent/a")
    host.obey.begin()
    host.hear(*host.journal.whole(), host.journal.beat())
    assert set(known(host)) == {"b"}
