"""The commands of control as an operator uses them, on a real `wardline up`: what they print, and what calls become of it."""

import json
import os
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.shells.controlclient import Control, Unsettled
from schemas.config import Config
from schemas.errors import PeerFault
from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until

pytestmark = pytest.mark.soak

SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
PERMIT = '@id("permit-all")\npermit (principal, action, resource);\n'
FORBID = '@id("forbid-search")\nforbid (principal, action, resource == Tool::"workspace/search");\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wardline]:
    """One `wardline up` for the tests of this module, each of which leaves it as it was."""
    with Wardline(tmp_path_factory.mktemp("site") / "home") as home:
        home.write_policies(PERMIT)
        home.up("--doors", "0")  # those of a replay are the doors here
        yield home


CALL = {"time": 1_772_435_263, "agent": "researcher", "action": "mcp:tools/call", "resource": 'Tool::"workspace/search"'}


def write_calls(path: Path, calls: Iterable[dict[str, Any]]) -> Path:
    """A file of calls like CALL, changed by each of `calls`; the session of a line is the file's name and the line's number."""
    lines = (CALL | {"session": f"{path.stem}-{n}"} | fields for n, fields in enumerate(calls))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def reasons(home: Wardline, path: Path, *calls: dict[str, Any]) -> list[str]:
    """What calls like CALL become now, in their order (CALL itself without any). No other file may have this one's name."""
    home.replay(write_calls(path, calls or [{}]))
    found = dict(home.sql(f"SELECT session, reason FROM calls WHERE startsWith(session, '{path.stem}-')"))
    return [found[f"{path.stem}-{n}"] for n in range(len(calls) or 1)]


def as_json(home: Wardline, command: str, *words: str, check: bool = True) -> Any:
    """What a command says with `--json`."""
    return json.loads(home.run(command, *words, "--json", check=check).stdout)


# -- agents --------------------------------------------------------------------------------------------------------------


def test_an_agent_is_added_shown_rotated_and_removed_and_its_credential_is_printed_once(site: Wardline, tmp_path: Path) -> None:
    added = site.run("agent", "add", "researcher", "--owner", "ops@example.com", "--sub", "https://issuer.example", "sub 1",
                     "--sub", "https://issuer.example", "sub 2", "--spiffe", "spiffe://example/researcher").stdout  # fmt: skip
    first = added.splitlines()[-1]
    assert SECRET.fullmatch(first)
    assert added.count(first) == 1
    again = site.run("agent", "add", "researcher", "--owner", "x", check=False)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("wardline: agent `researcher` is there already")

    one = as_json(site, "agent", "show", "researcher")
    assert (one["owner"], one["spiffe"]) == ("ops@example.com", ["spiffe://example/researcher"])
    assert one["subs"] == [["https://issuer.example", "sub 1"], ["https://issuer.example", "sub 2"]]
    text = site.run("agent", "show", "researcher").stdout
    for shown in ("ops@example.com", "sub 2 of https://issuer.example", "spiffe://example/researcher"):
        assert shown in text
    assert "researcher  ops@example.com" in site.run("agent", "list").stdout

    time.sleep(1.1)  # times are shown in seconds
    rotated = site.run("agent", "rotate", "researcher").stdout
    second = rotated.splitlines()[-1]
    assert SECRET.fullmatch(second)
    assert second != first
    now = as_json(site, "agent", "show", "researcher")
    assert (now["added"], now["owner"]) == (one["added"], one["owner"])
    assert now["changed"] > one["changed"]

    removed = site.run("agent", "remove", "researcher").stdout
    assert re.search(r"removed agent `researcher` as epoch \d+\n  enforce-1  \d+ ms\n", removed)
    assert site.run("agent", "show", "researcher", check=False).returncode == 2
    assert "researcher" not in site.run("agent", "list").stdout
    through = {"agent": "helper", "chain": ["researcher", "helper"]}
    assert reasons(site, tmp_path / "removed.jsonl", {}, through, {"agent": "helper"}) == ["revoked", "revoked", "permit"]

    # added again: it may act again, and is as old as its new beginning
    site.run("agent", "add", "researcher", "--owner", "other")
    assert reasons(site, tmp_path / "readded.jsonl") == ["permit"]
    assert as_json(site, "agent", "show", "researcher")["added"] > one["added"]

    told = site.run("audit", "control").stdout + site.run("agent", "list").stdout + text
    for path in site.home.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert first.encode() not in data, path
            assert second.encode() not in data, path
    assert "scrypt" not in told
    assert first not in told


# -- revocations ---------------------------------------------------------------------------------------------------------

REVOKED: dict[str, tuple[str, dict[str, Any]]] = {
    "agent": ("mallory", {"agent": "mallory"}),
    "principal": ("eve", {"chain": ['User::"eve"', "researcher"]}),
    "session": ("of-session", {}),
    "token": ("a" * 64, {"token": "a" * 64}),
    "key": ("thumb", {"key": "thumb"}),
    "grant": ("g-1", {"grant": "g-1"}),
    "issuer": ("https://issuer.example", {"issuer": "https://issuer.example"}),
    "destination": ("bank/send_money", {"resource": 'Tool::"bank/send_money"'}),
}
"""Kind -> what is revoked, and the fields of a call that names it."""

SHOWN = {"principal": 'User::"eve"'}
"""What is revoked, where it is brought into another spelling."""


def test_each_kind_of_thing_is_revoked_and_nothing_else_and_may_go_on_afterwards(site: Wardline, tmp_path: Path) -> None:
    calls = [{"session": f"of-{kind}"} | fields for kind, (_, fields) in REVOKED.items()]
    file = write_calls(tmp_path / "kinds.jsonl", [*calls, {"session": "of-nobody"}])
    query = "SELECT session, groupArray(reason) FROM calls WHERE startsWith(session, 'of-') GROUP BY session"

    for kind, (name, _) in REVOKED.items():
        told = site.run("revoke", kind, name, "--reason", f"drill {kind}").stdout
        shown = re.escape(SHOWN.get(kind, name))
        assert re.fullmatch(rf"revoked {kind} `{shown}` as epoch \d+\n  enforce-1  \d+ ms\n", told), told
    listed = as_json(site, "revocations")
    assert {(one["kind"], one["reason"], one["expires"]) for one in listed} == {(kind, f"drill {kind}", 0) for kind in REVOKED}
    assert "drill token" in site.run("revocations").stdout
    site.replay(file)
    expected = {f"of-{kind}": ["revoked"] for kind in REVOKED} | {"of-nobody": ["permit"]}
    assert dict(site.sql(query)) == expected

    for kind, (name, _) in REVOKED.items():
        told = site.run("unrevoke", kind, name).stdout
        shown = re.escape(SHOWN.get(kind, name))
        assert re.fullmatch(rf"no longer revoked: {kind} `{shown}` as epoch \d+\n  enforce-1  \d+ ms\n", told), told
    assert site.run("revocations").stdout == "nothing is revoked\n"
    again = site.run("unrevoke", "agent", "mallory", check=False)
    assert (again.returncode, again.stderr) == (2, "wardline: `agent:mallory` is not revoked\n")
    site.replay(file)
    assert {session: sorted(found) for session, found in site.sql(query)} == {
        session: sorted([*found, "permit"]) for session, found in expected.items()
    }


def test_a_token_is_named_by_its_hash_and_never_kept(site: Wardline) -> None:
    words = ("--reason", "leaked", "--for", "1h30m", "--not-before", "2026-01-31T12:00:00Z")
    site.run("revoke", "token", "planted-token-5f1c", *words)
    (one,) = as_json(site, "revocations")
    assert re.fullmatch(r"[0-9a-f]{64}", one["name"])
    assert (5_400 <= one["expires"] - one["since"] <= 5_402, one["not_before"]) == (True, 1_769_860_800)
    assert re.search(r" \d{4} s left \(issued before 2026-01-31 12:00:00\)", site.run("revocations").stdout)
    told = [site.run(*words).stdout for words in (("revocations",), ("audit", "control"))]
    assert "planted" not in "".join(told)
    for path in site.home.root.rglob("*"):
        assert not path.is_file() or b"planted-token" not in path.read_bytes(), path
    site.run("unrevoke", "token", "planted-token-5f1c")


def test_a_revocation_for_two_seconds_ends_by_itself_and_the_audit_says_so(site: Wardline) -> None:
    epoch = as_json(site, "revoke", "agent", "brief", "--reason", "drill", "--for", "2s")["epoch"]
    wait_until(lambda: as_json(site, "revocations") == [], 20, "it has ended")
    begun, ended = [entry for entry in audit(site, epoch - 1) if entry["key"] == "revocation/agent:brief"]
    assert 2 <= begun["value"]["expires"] - begun["time"] <= 3
    assert (ended["actor"], ended["value"]) == ("control", None)
    assert begun["value"]["expires"] <= ended["time"] < begun["value"]["expires"] + 2


@pytest.mark.soak
def test_cascade_reaches_an_agent_at_any_position_of_a_chain_and_an_end_lets_it_go_on(site: Wardline, tmp_path: Path) -> None:
    site.run("revoke", "agent", "acting", "--reason", "drill")
    assert "anywhere in a chain" in site.run("revoke", "agent", "anywhere", "--reason", "drill", "--cascade").stdout
    agents = [["acting"], ["acting", "researcher"], ["anywhere"], ["anywhere", "researcher"], ["brief"]]
    calls = [{"chain": ['User::"alice"', *chain], "agent": chain[-1]} for chain in agents]
    assert reasons(site, tmp_path / "cascade.jsonl", *calls) == ["revoked", "permit", "revoked", "revoked", "permit"]
    site.run("unrevoke", "agent", "anywhere", "--cascade")
    site.run("unrevoke", "agent", "acting")


# -- doors ---------------------------------------------------------------------------------------------------------------


def doors_of(home: Wardline) -> list[str]:
    """`HOST door BOOT` of each door that lives, as `policy status` names them."""
    return [f"{one['host']} door {one['door']}" for one in policy_status(home)["doors"] if one["door"]]


def policy_status(home: Wardline) -> Any:
    return as_json(home, "policy", "status", check=False)


def test_every_door_is_named_and_one_that_is_stopped_fails_the_command_until_it_goes_on(site: Wardline, tmp_path: Path) -> None:
    file = write_calls(tmp_path / "doors.jsonl", [{"agent": "busy"}] * 60_000)
    replay = site.popen("replay", str(file), "--doors", "4", "--rate", "2000", log="replay")
    try:
        wait_until(lambda: len(doors_of(site)) == 4, 30, lambda: f"four doors: {site.said('replay')}")
        doors = doors_of(site)
        told = as_json(site, "revoke", "agent", "nobody", "--reason", "drill")
        assert told["acknowledged"]
        assert {f"{one['host']} door {one['door']}" for one in told["doors"] if one["door"]} == set(doors)
        assert all(0 <= one["ms"] < 5_000 for one in told["doors"])

        stopped = next(pid for pid in children(replay.pid) if "door" in title(pid))
        os.kill(stopped, signal.SIGSTOP)
        done = site.run("revoke", "agent", "busy", "--reason", "drill", "--timeout", "2", check=False)
        late = re.search(r"not acknowledged within 2 s: (.*)\n", done.stderr)
        assert done.returncode == 1
        assert late is not None, done.stderr
        assert late[1] in {f"replay-1 door-{number}" for number in range(1, 5)} & {one["name"] for one in told["doors"]}
        assert re.search(rf"  {late[1]}  NOT ACKNOWLEDGED, at epoch \d+\n", done.stdout)
        assert len(re.findall(r"  replay-1 door-\d  \d+ ms\n", done.stdout)) == 3
        os.kill(stopped, signal.SIGCONT)
        assert as_json(site, "unrevoke", "agent", "nobody")["acknowledged"]
        # it goes on, refusing what was revoked while it stood still
        query = "SELECT countIf(reason = 'revoked') > 100 FROM calls WHERE agent = 'busy'"
        wait_until(lambda: site.sql(query) == [(1,)], 30, lambda: f"it refuses: {site.said('replay')}")
    finally:
        replay.send_signal(signal.SIGINT)
        replay.wait(60)
        site.run("unrevoke", "agent", "busy", check=False)


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for one in found for below in children(one))]


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


# -- pause ---------------------------------------------------------------------------------------------------------------


def test_a_pause_refuses_everything_and_resume_ends_it(site: Wardline, tmp_path: Path) -> None:
    told = site.run("pause", "--reason", "what is going on").stdout
    assert re.fullmatch(r"paused as epoch \d+\n  enforce-1  \d+ ms\n", told)
    assert "PAUSED (what is going on), epoch" in site.run("status").stdout
    assert site.status()["control"]["paused"] == {"reason": "what is going on"}
    assert reasons(site, tmp_path / "paused.jsonl") == ["paused"]
    assert re.fullmatch(r"resumed as epoch \d+\n  enforce-1  \d+ ms\n", site.run("resume").stdout)
    done = site.run("resume", check=False)
    assert (done.returncode, done.stderr) == (2, "wardline: nothing is paused\n")


# -- policies ------------------------------------------------------------------------------------------------------------


def test_policies_are_watched_a_bad_set_keeps_the_old_one_and_a_rollback_returns(site: Wardline, tmp_path: Path) -> None:
    before = policy_status(site)
    assert before["problem"] == ""
    site.write_policies(PERMIT + FORBID)
    wait_until(lambda: policy_status(site)["digest"] != before["digest"], 10, "the edit is seen")
    wait_until(lambda: site.run("policy", "status", check=False).returncode == 0, 10, "every door runs it")
    now = policy_status(site)
    assert now["previous"] == before["digest"]
    assert {one["digest"] for one in now["doors"]} == {now["digest"]}

    site.write_policies(PERMIT + "permit (principal, action, resource) when { true };\n")
    file = site.home.policies / "policy.cedar"
    where = f"{file}:3:38: conditions (`when`) are not supported yet"
    wait_until(lambda: policy_status(site)["problem"], 10, "the fault is seen")
    assert policy_status(site) == now | {"problem": where, "doors": policy_status(site)["doors"]}
    assert site.run("policy", "status", check=False).returncode == 1
    problem = site.status()["control"]["policy_problem"]
    assert (problem["file"], problem["line"], problem["column"]) == (str(file), 3, 38)
    assert f"WARNING       policies: {where}; those in force stay" in site.run("status", check=False).stdout
    assert where in site.said("control")
    assert reasons(site, tmp_path / "bad.jsonl") == ["forbid"]

    told = site.run("policy", "rollback").stdout
    digest = before["digest"][:12]
    assert re.fullmatch(rf"back to policies {digest} as epoch \d+\n  enforce-1  \d+ ms\n", told)
    assert reasons(site, tmp_path / "back.jsonl") == ["permit"]
    site.write_policies(PERMIT + "// the same\n")
    wait_until(lambda: policy_status(site)["problem"] == "", 10, "the files are right again")
    assert policy_status(site)["digest"] == before["digest"]


# -- audit ---------------------------------------------------------------------------------------------------------------


def audit(home: Wardline, after: int = 0) -> list[dict[str, Any]]:
    """The journal, as `--json` prints it."""
    lines = home.run("audit", "control", "--after", str(after), "--json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_the_audit_has_every_change_in_order_with_who_made_it(site: Wardline) -> None:
    site.run("revoke", "session", "audited", "--reason", "drill")
    site.run("unrevoke", "session", "audited")
    entries = audit(site)
    epochs = [entry["epoch"] for entry in entries]
    assert epochs == list(range(1, len(epochs) + 1))
    user = entries[-1]["actor"]
    assert user.startswith("uid:")
    ours = [entry for entry in entries if entry["key"] == "revocation/session:audited"]
    assert [(entry["actor"], entry["value"] and entry["value"]["reason"]) for entry in ours] == [(user, "drill"), (user, None)]
    assert {entry["actor"] for entry in entries} >= {"control", "home", user}
    assert all(abs(entry["time"] - time.time()) < 600 for entry in entries)
    assert [entry["epoch"] for entry in audit(site, epochs[-3])] == epochs[-2:]
    text = site.run("audit", "control", "--after", "1", "--limit", "2").stdout.splitlines()
    assert [line.split()[0] for line in text] == ["EPOCH", "2", "3"]


# -- keys ----------------------------------------------------------------------------------------------------------------


def test_the_control_key_is_rotated_and_the_old_one_retired_while_everything_runs(site: Wardline, tmp_path: Path) -> None:
    (old,) = as_json(site, "key", "list")
    assert old["signs"]
    assert re.search(r"as epoch \d+\n  enforce-1  \d+ ms\n", site.run("key", "rotate").stdout)
    keys = as_json(site, "key", "list")
    assert [(one["key"] == old["key"], one["signs"]) for one in keys] == [(True, False), (False, True)]
    done = site.run("key", "retire", keys[1]["key"], check=False)
    assert (done.returncode, "is the one that signs" in done.stderr) == (2, True)
    assert site.run("key", "retire", old["key"]).returncode == 0
    assert [one["key"] for one in as_json(site, "key", "list")] == [keys[1]["key"]]
    assert reasons(site, tmp_path / "rotated.jsonl") == ["permit"]
    assert not site.home.private_key("control", old["key"]).exists()


def test_status_shows_control_and_the_enforcers_that_it_hears(site: Wardline) -> None:
    status = site.status()
    said = read_run_file(site.home.run_file("control"))
    assert said is not None
    assert (status["control"]["state"], status["control"]["epoch"]) == ("ready", said["epoch"])
    assert [(host["host"], host["state"]) for host in status["control"]["hosts"]] == [("enforce-1", "ready")]
    assert re.search(r"control +epoch \d+, 1 of 1 enforcers ready\n", site.run("status").stdout)
    row = next(line for line in site.run("enforcer", "list").stdout.splitlines() if line.startswith("enforce-1"))
    assert re.match(rf"enforce-1 +ready +{said['epoch']} +\d\.\d s ago +0 +0$", row.rstrip())


# -- the last test here: it leaves revocations behind ----------------------------------------------------------------------


@pytest.mark.soak
def test_a_change_is_what_its_command_was_told_however_often_control_is_killed(site: Wardline) -> None:
    told: dict[str, set[str]] = defaultdict(set)
    done = threading.Event()

    def revoke(number: int) -> None:
        control = Control(site.home, Config())
        for n in range(10_000):
            if done.is_set():
                return
            name = f"killed-{number}-{n}"
            try:
                control.change("revoke", kind="session", name=name, reason="drill")
                told["made"].add(name)
            except Unsettled as fault:
                told["not made" if str(fault).endswith("the change was not made") else "unknown"].add(name)
            except PeerFault:  # it never went out
                told["not made"].add(name)
                time.sleep(0.05)

    threads = [threading.Thread(target=revoke, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = len(told["made"])
            wait_until(lambda before=before: len(told["made"]) > before + 20, 60, "control works")
            site.kill("control")
            wait_until(lambda: (read_run_file(site.home.run_file("control")) or {}).get("alive"), 60, "it is started again")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    wait_until(lambda: site.status()["control"]["state"] == "ready", 60, "control is ready")
    found = {entry["key"].removeprefix("revocation/session:") for entry in audit(site)}
    assert told["made"] <= found
    assert not told["not made"] & found
    assert len(told["made"]) > 100
    wait_until(lambda: site.run("policy", "status", check=False).returncode == 0, 30, "the host hears control again")
    assert as_json(site, "revoke", "session", "afterwards", "--reason", "drill")["acknowledged"]
