"""The file that doors know the agents by: one form, read again at the cost of what has changed, and refused when not whole."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import agents as module
from schemas.agents import Agent, Roll, encode, parse, read_agent
from schemas.control import Entry
from schemas.errors import OperatorFault

A = Agent(name="a", owner="alice", secret="scrypt$2$8$1$x$y", subs=(("https://idp.example", "r-17"),), spiffe=("spiffe://a/b",))
B = Agent(name="b", owner="bob", secret="")

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
some = st.builds(
    Agent, name=texts, owner=texts, secret=texts, subs=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    spiffe=st.lists(texts, max_size=2).map(tuple),
)  # fmt: skip


@given(st.lists(some, max_size=6, unique_by=lambda agent: agent.name), st.integers(0, 1 << 40))
def test_what_is_written_is_read(agents: list[Agent], epoch: int) -> None:
    data = encode(agents, epoch)
    found = parse(data, "agents.json")
    assert found.by_name == {agent.name: agent for agent in agents}
    assert found.epoch == epoch
    assert parse(data, "agents.json", found) == found
    whole = json.loads(data)
    assert [one["name"] for one in whole["agents"]] == sorted(agent.name for agent in agents)


@given(st.lists(some, min_size=1, max_size=4, unique_by=lambda agent: agent.name), st.data())
def test_a_file_cut_off_anywhere_is_refused(agents: list[Agent], data: Any) -> None:
    whole = encode(agents, 5)
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(OperatorFault, match="is damaged"):
        parse(whole[:at], "agents.json")


def test_a_line_that_is_known_is_not_read_again() -> None:
    before = parse(encode([A, B], 1), "x")
    after = parse(encode([A, Agent(name="b", owner="bob", secret="new")], 2), "x", before)
    assert after.by_name["a"] is before.by_name["a"]
    assert after.by_name["b"].secret == "new"


def test_what_two_agents_have_is_nobodys() -> None:
    pair = ("https://idp.example", "r-17")
    found = parse(encode([A, Agent(name="c", owner="o", secret="", subs=(pair, ("i", "s")))], 1), "x")
    assert found.by_sub == {("i", "s"): "c"}
    same = parse(encode([Agent(name="c", owner="o", secret="", subs=(pair, pair))], 1), "x")
    assert same.by_sub == {pair: "c"}


BROKEN = {
    "empty": b"",
    "another form": encode([A], 1).replace(b"agents-1", b"agents-2"),
    "an epoch that is a text": encode([A], 1).replace(b'"epoch":1', b'"epoch":"1"'),
    "a member more": encode([A], 1).replace(b'"epoch":1', b'"epoch":1,"x":1'),
    "something behind the end": encode([A], 1) + b"\n",
    "a name twice": encode([A], 1).replace(b"\n]}", b",\n" + A.line().replace(b"alice", b"other") + b"\n]}"),
    "a line twice": encode([A], 1).replace(b"\n]}", b",\n" + A.line() + b"\n]}"),
    "an agent with a field more": encode([A], 1).replace(b'"owner"', b'"x":1,"owner"'),
    "an agent in another spelling": encode([A], 1).replace(b'"owner":', b'"owner": '),
    "a name with a control character": encode([A], 1).replace(b'"name":"a"', b'"name":"a\\u001f"'),
    "no json": encode([A], 1).replace(b'"name"', b"name"),
    "deep": b'{"form":' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_whole_is_refused(name: str) -> None:
    with pytest.raises(OperatorFault, match=r"agents\.json: is damaged, so no agent is known"):
        parse(BROKEN[name], "agents.json")


def test_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGENTS_MAX", 1)
    with pytest.raises(OperatorFault, match="has 2 agents, limit is 1"):
        parse(encode([A, B], 1), "agents.json")


VALUE: dict[str, Any] = {"owner": "o", "secret": "s", "subs": [["i", "s"]], "spiffe": ["spiffe://x"]}


@pytest.mark.parametrize(
    "more",
    [
        {"owner": 1}, {"secret": None}, {"subs": "x"}, {"subs": [["i"]]}, {"subs": [["i", 1]]}, {"subs": [["i", ""]]},
        {"subs": [["i\x1f", "s"]]}, {"spiffe": [1]}, {"spiffe": {"a": 1}},
    ],
)  # fmt: skip
def test_an_entry_that_says_no_agent_is_none(more: dict[str, Any]) -> None:
    assert read_agent("a", VALUE) is not None
    assert read_agent("a", {**VALUE, **more}) is None


@pytest.mark.parametrize("name", ["", "a\x1fb", "a\nb", "\ud800", "x" * 257])
def test_a_name_that_cannot_be_said_is_nobodys(name: str) -> None:
    assert read_agent(name, VALUE) is None


def test_a_roll_follows_the_log() -> None:
    def entry(epoch: int, name: str, value: Any) -> Entry:
        return Entry(epoch=epoch, key=f"agent/{name}", time_ns=0, actor="t", value=value)

    roll = Roll()
    roll.take(entry(1, "b", VALUE))
    roll.take(entry(2, "a", VALUE))
    roll.take(entry(3, "b", {**VALUE, "secret": "new"}))
    found = parse(roll.encode(3), "x")
    assert (len(roll), found.epoch, found.by_name["b"].secret, list(found.by_name)) == (2, 3, "new", ["a", "b"])
    roll.take(entry(4, "a", None))
    roll.take(entry(5, "c", None))
    assert list(parse(roll.encode(5), "x").by_name) == ["b"]
    roll.clear()
    assert parse(roll.encode(6), "x").by_name == {}
