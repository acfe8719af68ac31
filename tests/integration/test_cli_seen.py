"""`calls --follow`, `explain`, `inventory` and `top` on a whole pipeline: a door records, processes carry it, commands tell.

One home for all tests of this file, and nothing is emptied between them: each looks for what it did itself.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.cli import explain
from pipeline.cli.asking import asking
from pipeline.cli.main import main
from schemas.config import load_config
from schemas.keys import parse_public
from schemas.records import Outcome
from tests.support.home import Wardline, wait_until
from tests.support.recorded import NO_DOORS, Made, RecordingDoor, start

CHAIN = ('User::"alice"', 'Agent::"planner"', 'Agent::"researcher"')


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wardline]:
    with Wardline(tmp_path_factory.mktemp("seen") / "home", config=NO_DOORS) as home:
        start(home)
        yield home


@pytest.fixture(scope="module")
def door(home: Wardline) -> Iterator[RecordingDoor]:
    made = RecordingDoor(home)
    yield made
    made.close()


Told = Callable[..., str]


@pytest.fixture
def told(home: Wardline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """What a command prints, in this process: a start takes seconds on a busy machine."""
    monkeypatch.delenv("WARDLINE_PARENT", raising=False)

    def run(*words: str, code: int = 0, error: bool = False) -> str:
        capsys.readouterr()
        mask = os.umask(0o077)
        try:
            assert main([words[0], "--home", str(home.home.root), *words[1:]]) == code, capsys.readouterr()
        finally:
            os.umask(mask)
        out, err = capsys.readouterr()
        return err if error else out

    return run


def stored(home: Wardline, *made: Made, ended: bool = True) -> None:
    """Wait until the calls are in the store, with their last words."""
    ids = ", ".join(f"'{one.id}'" for one in made)
    what = f"call_id IN ({ids})" + (" AND (ended IS NOT NULL OR verdict = 'deny')" if ended else "")
    count = f"SELECT count() FROM calls WHERE {what}"
    wait_until(lambda: home.sql(count) == [(len(made),)], 60, f"{len(made)} calls are stored")


def changed(told: Told, *words: str) -> int:
    """Change something in control; its epoch. The test's door acknowledges nothing, so the command says so."""
    return int(json.loads(told(*words, "--timeout", "0.1", "--json", code=1))["epoch"])


# -- calls --follow ------------------------------------------------------------------------------------------------------


class Following:
    """`wardline calls --follow --json` in a process of its own, and what it has printed so far."""

    def __init__(self, home: Wardline, *words: str) -> None:
        self.out = home.home.root / "followed"
        self.err = home.home.root / "followed.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(home.words("calls", "--follow", "--json", *words), stdout=out, stderr=err,
                                            stdin=subprocess.DEVNULL)  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def words(self, made: Made) -> list[tuple[str, str]]:
        """The last words on a call, as they were printed one after another."""
        return [(row["outcome"], row["reason"]) for row in self.rows() if row["call_id"] == made.id]

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@contextlib.contextmanager
def following(home: Wardline, *words: str) -> Iterator[Following]:
    made = Following(home, *words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait(20)


def test_each_call_is_told_when_it_appears_and_when_its_last_word_changes_and_the_store_may_be_killed(
    home: Wardline, door: RecordingDoor
) -> None:
    before = door.call(session="follow")
    door.end(before)
    stored(home, before)
    with following(home, "--session", "follow") as seen:
        wait_until(lambda: seen.words(before), 30, "it begins with the last ones")
        tunnel, other = (door.call(session="follow", action="http:CONNECT") for _ in range(2))
        refused = door.call(session="follow", resource='Host::"paste.example:443"')
        stranger = door.call(session="not followed")
        wait_until(lambda: all(seen.words(one) for one in (tunnel, other, refused)), 30, "three more are told")
        home.kill("store")
        door.progress(tunnel, 100, 5)
        door.cut(tunnel, "revoked", bytes_out=200, bytes_in=7)
        many = [door.call(session="follow") for _ in range(300)]
        for one in many[::2]:
            door.end(one, status=200)
        wait_until(lambda: "waiting for it" in seen.err.read_text(), 30, "it says that the store is away")
        home.start("store")
        wait_until(lambda: all(seen.words(one) for one in many), 60, "those are told that came while the store was away")
        for one in (*many[1::2], other):
            door.end(one, Outcome.ERROR, status=502)
        wait_until(lambda: all(seen.words(one)[-1][0] for one in (*many, other)), 60, "every end is told")
        assert seen.interrupt() == 0
    assert seen.words(before) == [("ok", "permit")]
    assert seen.words(refused) == [("refused", "forbid")], "closed by its decision"
    assert seen.words(tunnel) == [("", "permit"), ("refused", "revoked")], "progress is no last word"
    assert seen.words(other) == [("", "permit"), ("error", "permit")]
    assert seen.words(stranger) == []
    for one in many[1::2]:
        assert seen.words(one) in ([("", "permit"), ("error", "permit")], [("error", "permit")])
    told = Counter((row["call_id"], row["outcome"]) for row in seen.rows())
    assert set(told.values()) == {1}, "nothing is told twice"
    cut = [row for row in seen.rows() if row["call_id"] == tunnel.id][-1]
    assert (cut["verdict"], cut["bytes_out"], cut["bytes_in"]) == ("deny", 200, 7)
    errors = seen.err.read_text().splitlines()
    assert len(errors) == 2, errors
    assert errors[1] == "wardline: the store answers again"
    door.end(stranger)


def test_a_store_that_is_away_at_the_beginning_ends_it(home: Wardline, told: Told) -> None:
    said = told("calls", "--follow", "--clickhouse", "http://127.0.0.1:1", code=2, error=True)
    assert said == "wardline: the store at 127.0.0.1:1 does not answer\n"


# -- explain -------------------------------------------------------------------------------------------------------------


def test_an_allowed_call_says_who_for_whom_by_what_and_where_its_proof_is(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made = door.call(CHAIN, path="/x\x1b[2J", query_bytes=12, query_bits=30, parent_span=b"\x01" * 8)
    door.end(made, status=200, bytes_out=2048, bytes_in=3, address="192.0.2.7:443")
    stored(home, made)
    text = told("explain", made.id)
    assert "\x1b" not in text
    for line in (
        r"who         researcher",
        r'for whom    User::"alice" -\(signed\)-> Agent::"planner" -\(signed\)-> Agent::"researcher"',
        r"credential  a token that an issuer has signed; hash (ab){32}",
        r'asked       http:GET on Host::"a.example:443", path /x\\x1b\[2J, query of 12 bytes with 30 bits',
        r"verdict     ALLOWED",
        r'            Agent::"planner": allow, permit by read-the-web',
        r"            read-the-web \(permit at .*/policy.cedar:3:1\)",
        r'              permit \(principal in AgentGroup::"readers", action in Action::"http:read", resource\);',
        r"ended       it was done, status 200",
        r"dialled     192\.0\.2\.7:443",
        r"bytes       2\.0 KiB out, 3 B in",
        r"frame       [0-9]+ of lane enforce-1/[0-9a-f]{16}/[0-9]+, digest [0-9a-f]{64}; signature good, by the key pinned"
        r" in this home; it covers records [0-9]+ to [0-9]+ of this door",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), f"{line}\n{text}"
    assert "to allow it" not in text
    found = json.loads(told("explain", made.id, "--json"))
    assert found["frame"]["verified"]
    assert found["span"] == f"{door.boot & 0xFFFFFFFF:08x}{made.seq:08x}"
    assert [record["kind"] for record in found["records"]] == ["decision", "effect"]


def test_a_forbidden_call_names_the_policy_with_its_reason_and_whom_to_ask(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made = door.call(resource='Host::"paste.example:443"')
    stored(home, made)
    text = told("explain", made.id)
    assert "why         forbid: a policy forbids it\n" in text
    assert '@reason("pastes; leave \\"no\\" trace")' in text
    assert 'forbid (principal, action, resource == Host::"paste.example:443");' in text
    assert "nobody pays" not in text, "the text of a policy begins with its annotations"
    assert text.endswith("whoever answers for the policies would have to change no-paste\n")
    found = json.loads(told("explain", made.id, "--json"))
    assert found["policies"][0]["annotations"] == {"id": "no-paste", "reason": 'pastes; leave "no" trace'}


def test_a_call_that_nothing_permits_says_which_agents_lack_what(home: Wardline, door: RecordingDoor, told: Told) -> None:
    made = door.call((*CHAIN, 'Agent::"intern"'), action="http:POST")
    other = door.call((*CHAIN, 'Agent::"intern"'))
    stored(home, made, other)
    for agents, one, action in (("planner researcher intern", made, "POST"), ("intern", other, "GET")):
        text = told("explain", one.id)
        for agent in agents.split():
            on = f'action == Action::"http:{action}", resource == Host::"a.example:443"'
            assert f'permit (principal == Agent::"{agent}", {on});' in text
        assert text.count("permit (principal ==") == len(agents.split())


def test_a_tunnel_that_was_refused_for_its_second_question_asks_for_that(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made = door.call(action="http:CONNECT")
    door.end(made, Outcome.REFUSED, reason="no-permit", error="tcp:CONNECT: the client asks for no name")
    stored(home, made)
    text = told("explain", made.id)
    assert "then tcp:CONNECT on the same" in text
    assert "tcp:CONNECT: the client asks for no name" in text
    assert 'action == Action::"tcp:CONNECT"' in text


def test_a_revoked_call_names_the_revocation_by_whom_and_how_to_lift_it(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made = door.call(CHAIN, action="http:CONNECT", session="s-revoked")
    changed(told, "revoke", "session", "another", "--reason", "not this")
    epoch = changed(told, "revoke", "agent", "planner", "--cascade", "--reason", "reads what it should not")
    door.cut(made, "revoked", epoch=epoch, bytes_out=5)
    stored(home, made)
    wait_until(lambda: home.sql(f"SELECT count() FROM control WHERE epoch = {epoch}") == [(1,)], 30, "the store knows")
    text = told("explain", made.id)
    assert f"epoch       {epoch} of the control log\n" in text
    line = rf"^revoked     agent\*:planner by uid:\S+ at .*, epoch {epoch}: reads what it should not$"
    assert re.search(line, text, re.MULTILINE), text
    assert "another" not in text
    assert "to allow it `wardline unrevoke agent planner --cascade`, once the reason has gone\n" in text
    changed(told, "unrevoke", "agent", "planner", "--cascade")
    wait_until(lambda: "lifted since" in told("explain", made.id), 30, "it says that it was lifted")


def test_a_paused_call_says_by_whom_and_why(home: Wardline, door: RecordingDoor, told: Told) -> None:
    made = door.call(action="http:CONNECT")
    epoch = changed(told, "pause", "--reason", "what is going on")
    changed(told, "resume")
    door.cut(made, "paused", epoch=epoch)
    stored(home, made)
    wait_until(lambda: home.sql(f"SELECT count() FROM control WHERE epoch = {epoch}") == [(1,)], 30, "the store knows")
    text = told("explain", made.id)
    assert re.search(rf"^paused      by uid:\S+ at .*, epoch {epoch}: what is going on$", text, re.MULTILINE), text


def test_policies_that_have_changed_since_are_said_to_have_and_shown_as_they_were_compiled(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made = door.call()
    door.end(made)
    stored(home, made)
    path = home.home.policies / "policy.cedar"
    text = path.read_text()
    wait_until(lambda: list(home.home.hosts.glob("enforce-1/bundle/*.json")), 30, "the host keeps its policies")
    try:
        for change, says in ((text + "permit (principal, action, resource);", "have changed since: their digest is now"),
                             ("permit (nonsense", "do not compile now (")):  # fmt: skip
            path.write_text(change)
            said = told("explain", made.id)
            assert f"            the files {says}" in said
            assert "shown is the scope that was compiled" in said
            assert '  permit (principal in AgentGroup::"readers", action in Action::"http:read", resource);' in said
    finally:
        path.write_text(text)


def test_the_key_that_control_registered_is_found_in_the_store(home: Wardline) -> None:
    with asking(home.home, load_config(home.home.config)) as asker:
        pem = (home.home.trusted("hosts") / "enforce-1.pub").read_bytes()
        assert explain._registered(asker, "enforce-1") == [parse_public(pem)]
        assert explain._registered(asker, "enforce-2") == []


def test_an_id_is_found_by_its_beginning_and_what_is_not_there_says_where_to_look(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    made, second = door.call(), door.call()
    stored(home, made, second, ended=False)
    assert told("explain", made.id.upper()).startswith(f"call        {made.id}\n")
    said = told("explain", made.id[:8], code=2, error=True)
    assert said.startswith(f"wardline: `{made.id[:8]}` is the beginning of several calls, give more of it: {door.boot:016x}")
    alone = RecordingDoor(home)
    single = alone.call()
    alone.end(single)
    alone.close()
    stored(home, single)
    assert told("explain", single.id[:16]).startswith(f"call        {single.id}\n")
    said = told("explain", "f" * 32, code=2, error=True)
    assert said.startswith(f"wardline: no call `{'f' * 32}` is in the store")
    home.sigstop("enforce-1")
    try:
        late = door.call()
        assert "is in the store" in told("explain", late.id, code=2, error=True)
    finally:
        home.sigcont("enforce-1")
    stored(home, late, ended=False)
    door.end(late)


# -- inventory and top ---------------------------------------------------------------------------------------------------


def test_the_inventory_marks_bearer_secrets_and_names_shadows_with_exact_counts(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    told("agent", "add", "courier", "--owner", "ops@example.com")
    told("agent", "add", "sleeper", "--owner", "dev@example.com")
    one = door.call(('Agent::"courier"',), proof="secret", credential="cd" * 16)
    door.nobody("ghost\x1b]0;x\x07", 100_000)
    door.nobody("courier", 3)
    door.nobody("", 5)
    stored(home, one)
    wait_until(lambda: home.sql("SELECT sum(count) FROM refusals") == [(100_008,)], 60, "the refusals are stored")
    wait_until(lambda: len(home.sql("SELECT key FROM control WHERE kind = 'agent'")) == 2, 30, "the agents are stored")
    text = told("inventory")
    assert "\x1b" not in text
    assert re.search(r"^courier +ops@example\.com +! secret +\S+ \S+ +\S+ \S+ +1 +0 +1 +3$", text, re.MULTILINE), text
    assert re.search(r"^sleeper +dev@example\.com +- +never +never +0 +0 +0 +0$", text, re.MULTILINE), text
    assert re.search(r"^1 of \d+ prove themselves by a bearer secret", text, re.MULTILINE), text
    assert re.search(r"^ghost\S* +\S+ \S+ +\S+ \S+ +100000$", text, re.MULTILINE), text
    assert "5 more requests showed no credential and no name" in text
    shadows = json.loads(told("inventory", "--kind", "shadow", "--json"))
    assert [(row["kind"], row["failed"], row["bearer"]) for row in shadows] == [("shadow", 100_000, False)]
    agents = {row["name"]: row for row in json.loads(told("inventory", "--kind", "agent", "--json"))}
    assert (agents["courier"]["bearer"], agents["courier"]["credentials"]) == (True, ["secret"])
    assert (agents["sleeper"]["first_seen"], agents["sleeper"]["listed"]) == (None, True)
    assert all(row["kind"] == "destination" for row in json.loads(told("inventory", "--kind", "destination", "--json")))


def test_top_shows_agents_destinations_verdicts_doors_and_what_is_open(
    home: Wardline, door: RecordingDoor, told: Told
) -> None:
    tunnel = door.call(('Agent::"planner"',), action="http:CONNECT", resource='Host::"top.example:443"')
    door.progress(tunnel, 3 << 20, 10)
    refused = door.call(('Agent::"busy"',), resource='Host::"top.example:443"')
    door.nobody("top", 4, "unlisted")
    stored(home, tunnel, refused, ended=False)
    wait_until(lambda: home.sql("SELECT count() FROM refusals WHERE agent = 'top'") == [(1,)], 30, "the refusals are stored")
    said = {"name": "door-7", "pid": os.getpid(), "state": "ready", "address": "127.0.0.1:17480", "calls": 12, "refused": 4,
            "tunnels": 3, "open": 5, "epoch": 9}  # fmt: skip
    home.home.run_file("door-7").write_text(json.dumps(said))
    try:
        text = told("top", "--once")
    finally:
        home.home.run_file("door-7").unlink()
    assert re.search(r"^\S+ \S+ UTC, last 15 s: [0-9.]+ calls/s, \d+ calls, \d+ denied, \d+ open$", text, re.MULTILINE), text
    assert re.search(r"^top\.example:443 +0\.1 +2 +1 +1 +3\.0 MiB +10 B$", text, re.MULTILINE), text
    assert re.search(r"^busy +0\.1 +1 +1 +0 ", text, re.MULTILINE), text
    assert re.search(r"^deny +no-permit +\d+$", text, re.MULTILINE), text
    assert re.search(r"^identity +unlisted +4$", text, re.MULTILINE), text
    assert re.search(r"^door-7 +ready +127\.0\.0\.1:17480 +12 +4 +3 +5 +9$", text, re.MULTILINE), text
    door.end(tunnel)
