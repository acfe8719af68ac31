"""`wardline replay` with its real host and no pipeline: what is in the frames, whatever is killed on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from schemas.calls import RecordedCall, parse_call
from schemas.limits import CHAIN_LINKS_MAX
from schemas.process import read_run_file
from schemas.records import SEPARATOR, Kind, Outcome, Verdict
from schemas.vocabulary import implied_parents, parse_uid
from tests.support.data import REPOSITORY
from tests.support.home import Wardline, wait_until
from tests.support.outbox import decisions, ends, sealed

EXAMPLES = REPOSITORY / "pipeline" / "cli" / "examples"
SAMPLE = EXAMPLES / "calls.jsonl"
PERMIT_TOOLS = 'permit (principal, action == Action::"mcp:tools/call", resource);'


@pytest.fixture
def home(wardline: Wardline) -> Wardline:
    """A home with the example policies and nothing running."""
    shutil.copytree(EXAMPLES / "policies", wardline.home.policies)
    return wardline


def read(path: Path) -> list[RecordedCall]:
    return [parse_call(line, n, file=str(path), digest=b"") for n, line in enumerate(path.read_bytes().splitlines(), 1)]


def repeat(path: Path, times: int) -> Path:
    path.write_bytes(SAMPLE.read_bytes() * times)
    return path


def done(home: Wardline) -> list[dict[str, Any]]:
    return decisions(sealed(home.home))


def leave(process: "subprocess.Popen[bytes]") -> int:
    """Two signals: stop, then at once. Nothing is stored here, so the first alone would wait for that."""
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    return process.wait(20)


def wait_ended(home: Wardline) -> None:
    """Wait until each allowed call has its end: effects are sealed after their decisions."""
    wait_until(lambda: len(ends(sealed(home.home))) == sum(r["verdict"] for r in done(home)), 20, "every call has ended")


def wait_called(home: Wardline, lines: int, log: str = "replay") -> None:
    wait_until(lambda: len(done(home)) >= lines, 60, lambda: f"{lines} calls are sealed; it said {home.said(log)}", every=0.3)


def cedar(path: Path) -> dict[int, Verdict]:
    """Cedar's own verdict for each line: the AND over the agents of its chain."""
    policies = "\n".join(f.read_text() for f in sorted((EXAMPLES / "policies").glob("*.cedar")))
    listed = {(e["uid"]["type"], e["uid"]["id"]): e for e in json.loads((EXAMPLES / "policies" / "entities.json").read_text())}
    calls = read(path)
    entities = {uid: {(p["type"], p["id"]) for p in e["parents"]} for uid, e in listed.items()}
    waiting = [uid for c in calls for uid in (*c.chain, c.resource, f'Action::"{c.action}"')]
    while waiting:
        uid = waiting.pop()
        above = implied_parents(uid)
        entities.setdefault(parse_uid(uid), set()).update(parse_uid(up) for up in above)
        waiting += above
    form = [
        {"uid": {"type": t, "id": n}, "attrs": {}, "parents": [{"type": pt, "id": pn} for pt, pn in sorted(up)]}
        for (t, n), up in entities.items()
    ]
    asked = [(c.ref, uid, c) for c in calls for uid in c.chain if uid.startswith("Agent::")]
    answers = cedarpy.is_authorized_batch(
        [{"principal": uid, "action": f'Action::"{c.action}"', "resource": c.resource, "context": {}} for _, uid, c in asked],
        policies, form,
    )  # fmt: skip
    found: dict[int, Verdict] = {}
    for (ref, _, _), answer in zip(asked, answers, strict=True):
        found[ref] = Verdict.ALLOW if answer.allowed and found.get(ref) is not Verdict.DENY else Verdict.DENY
    return found


def test_the_frames_have_each_line_as_cedar_decides_it(home: Wardline) -> None:
    process = home.popen("replay", str(SAMPLE))
    wait_called(home, 1000)
    assert leave(process) == 130
    said = home.said("replay")
    assert "stopped with all 1,000 lines called, before everything was known to be stored; to go on: " in said
    records = sealed(home.home)
    verdicts, ended = cedar(SAMPLE), ends(records)
    assert set(verdicts.values()) == {Verdict.ALLOW, Verdict.DENY}
    calls = read(SAMPLE)
    for line, record in zip(calls, decisions(records), strict=True):
        allowed = verdicts[line.ref] is Verdict.ALLOW
        assert {name: record[name] for name in ("ref", "verdict", "outcome", "agent", "root", "chain", "depth", "door")} == {
            "ref": line.ref, "verdict": int(allowed), "outcome": Outcome.OPEN if allowed else Outcome.REFUSED, "door": "replay",
            "agent": line.agent, "root": line.chain[0], "chain": SEPARATOR.join(line.chain), "depth": len(line.chain),
        }, line  # fmt: skip
        assert (record["session"], record["action"], record["resource"]) == (line.session, line.action, line.resource)
        assert (record["trace_id"], record["parent_span"]) == (line.trace_id, line.parent_span)
        assert (record["credential"], record["proof"], record["tenant"]) == ("", "", "default")
        assert int(record["time"].timestamp() * 1_000_000) == line.time_ns // 1000
        end = {
            "kind": Kind.EFFECT, "outcome": line.outcome, "bytes_out": line.bytes_out, "bytes_in": line.bytes_in,
            "status": line.status, "error": line.error, "duration_us": line.duration_ns // 1000,
        }  # fmt: skip
        found = ended.get((record["boot"], record["seq"]), [])
        assert [{name: one[name] for name in end} for one in found] == [end] * allowed, line


def test_a_chain_that_is_too_deep_is_refused_and_kept_whole(wardline: Wardline, tmp_path: Path) -> None:
    wardline.write_policies("permit (principal, action, resource);")
    line = json.loads(SAMPLE.read_text().splitlines()[0])
    deep = [f"a{n}" for n in range(CHAIN_LINKS_MAX)] + [line["agent"]]
    path = tmp_path / "deep.jsonl"
    path.write_text("".join(json.dumps(line | {"chain": chain}) + "\n" for chain in (deep, deep[1:])))
    process = wardline.popen("replay", str(path))
    wait_called(wardline, 2)
    leave(process)
    refused, allowed = done(wardline)
    assert (refused["verdict"], refused["reason"], refused["depth"]) == (Verdict.DENY, "chain", CHAIN_LINKS_MAX + 1)
    assert len(refused["chain"].split(SEPARATOR)) == CHAIN_LINKS_MAX + 1
    assert (allowed["verdict"], allowed["depth"]) == (Verdict.ALLOW, CHAIN_LINKS_MAX)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def host_pid(home: Wardline) -> int:
    said = read_run_file(home.home.run_file("replay-1"))
    return int(said["pid"]) if said and said["alive"] else 0


def doors(home: Wardline) -> int:
    return sum(len(folder.name) == 16 for folder in home.home.hosts.glob("*/doors/*"))


def die_and_resume(home: Wardline, path: Path, lines: int, rng: random.Random, kills: int) -> None:
    """Replay a file; kill the replay, or its host and then the replay, or both at once, `kills` times; then let it end."""
    for attempt in range(kills + 1):
        made = doors(home)
        process = home.popen("replay", str(path), "--resume", "--rate", "1500", log=f"replay-{attempt}")
        if attempt == kills:
            wait_called(home, lines, f"replay-{attempt}")
            wait_ended(home)
            assert leave(process) == 130
            return
        if rng.random() < 0.3:  # while its host starts, or adopts the door before
            time.sleep(rng.uniform(0.2, 2.0))
        else:  # while it calls
            wait_until(lambda: doors(home) > made, 30, "a door is made")  # noqa: B023
            time.sleep(rng.uniform(0, 0.4))
        host = host_pid(home)
        victim = rng.choice(("door", "host", "both"))
        if victim != "door" and host:
            kill(host)
        if victim == "host":
            time.sleep(rng.uniform(0, 0.8))
        kill(process.pid)
        process.wait(10)


def each_line_once(home: Wardline, path: Path, kills: int) -> None:
    records = sealed(home.home)
    made, ended, verdicts = decisions(records), ends(records), cedar(path)
    assert [r["ref"] for r in made] == sorted(verdicts)
    assert [Verdict(r["verdict"]) for r in made] == [verdicts[r["ref"]] for r in made]
    assert all(len(found) == 1 for found in ended.values())
    assert set(ended) == {(r["boot"], r["seq"]) for r in made if r["verdict"] == Verdict.ALLOW}
    assert sum(found[0]["kind"] == Kind.LOST for found in ended.values()) <= kills


@pytest.mark.parametrize("seed", range(2))
def test_each_line_is_called_once_whatever_is_killed(home: Wardline, tmp_path: Path, seed: int) -> None:
    path = repeat(tmp_path / "calls.jsonl", 6)
    die_and_resume(home, path, 6000, random.Random(seed), kills=3)
    each_line_once(home, path, kills=3)
    assert len({r["boot"] for r in done(home)}) > 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 20))
def test_each_line_is_called_once_whatever_is_killed_at_length(home: Wardline, tmp_path: Path, seed: int) -> None:
    path = repeat(tmp_path / "calls.jsonl", 25)
    die_and_resume(home, path, 25_000, random.Random(seed), kills=12)
    each_line_once(home, path, kills=12)


def test_a_host_that_dies_is_started_again_and_no_call_is_lost(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 4)
    process = home.popen("replay", str(path), "--rate", "1000")
    for _ in range(3):
        host = wait_until(lambda: host_pid(home), 30, "a host lives")
        time.sleep(0.8)
        kill(host)
        wait_until(lambda: host_pid(home) not in (0, host), 30, "another host lives")  # noqa: B023
    wait_called(home, 4000)
    wait_ended(home)
    assert process.poll() is None
    assert leave(process) == 130
    records = sealed(home.home)
    assert [r["ref"] for r in decisions(records)] == list(range(1, 4001))
    assert {r["kind"] for r in records} == {Kind.DECISION, Kind.EFFECT}
    assert len({r["boot"] for r in records}) == 1
    assert "was killed by SIGKILL; it is started again" in home.said("replay")


def test_without_resume_lines_are_new_calls(home: Wardline) -> None:
    for times in (1, 2):
        process = home.popen("replay", str(SAMPLE))
        wait_called(home, times * 1000)
        leave(process)
    refs = [r["ref"] for r in done(home)]
    assert refs == [n for n in range(1, 1001) for _ in (1, 2)]


def test_policies_that_change_between_two_hosts_hold_for_the_calls_that_follow(wardline: Wardline, tmp_path: Path) -> None:
    wardline.write_policies(PERMIT_TOOLS)
    path = repeat(tmp_path / "calls.jsonl", 3)
    process = wardline.popen("replay", str(path), "--rate", "400")
    wait_called(wardline, 50)
    wardline.write_policies("forbid (principal, action, resource);")
    host = host_pid(wardline)
    kill(host)
    wait_until(lambda: host_pid(wardline) not in (0, host), 30, "another host lives")
    wait_until(lambda: len({r["policy_digest"] for r in done(wardline)}) == 2, 30, "the other policies hold")
    leave(process)
    made = done(wardline)
    digests = [r["policy_digest"] for r in made]
    assert digests == sorted(digests, key=[digests[0], digests[-1]].index)
    assert {r["verdict"] for r in made if r["policy_digest"] == digests[-1]} == {Verdict.DENY}


def refused(home: Wardline, *words: str) -> str:
    found = home.run("replay", *words, check=False, timeout=60)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    return found.stderr.splitlines()[-1]


def test_a_bad_line_refuses_the_whole_file(home: Wardline, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(SAMPLE.read_text() + '{"time":0}\n')
    assert refused(home, str(path)) == f"wardline: {path}:1001: agent: is missing"
    assert not home.home.hosts.exists()
    assert refused(home, str(tmp_path / "none.jsonl")).endswith("none.jsonl: cannot be read: no such file or directory")
    assert "`0` is not a number of calls a second" in refused(home, str(SAMPLE), "--rate", "0")


def test_an_empty_file_has_nothing_to_call(home: Wardline, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert home.run("replay", str(tmp_path / "empty.jsonl")).stdout.endswith("empty.jsonl is empty: there is nothing to call\n")
    assert not home.home.hosts.exists()


def test_policies_that_do_not_compile_are_said_by_name(home: Wardline) -> None:
    home.write_policies("permit (principal, action, resource", "00-bad.cedar")
    assert "00-bad.cedar:1:" in refused(home, str(SAMPLE))


def test_a_home_without_policies_refuses_every_call_and_says_so(wardline: Wardline) -> None:
    process = wardline.popen("replay", str(SAMPLE))
    wait_called(wardline, 1000)
    leave(process)
    assert f"wardline: {wardline.home.policies} has no policy, so every call is refused\n" in wardline.said("replay")
    assert {(r["verdict"], r["reason"], r["outcome"]) for r in done(wardline)} == {(Verdict.DENY, "no-permit", Outcome.REFUSED)}


def test_one_process_at_a_time_replays_a_file(home: Wardline) -> None:
    process = home.popen("replay", str(SAMPLE), "--rate", "10")
    wait_called(home, 1)
    assert f"is held by process {process.pid} " in refused(home, str(SAMPLE), "--resume")
    leave(process)


def test_two_files_are_replayed_side_by_side(home: Wardline, tmp_path: Path) -> None:
    other = repeat(tmp_path / "other.jsonl", 2)
    one = home.popen("replay", str(SAMPLE), "--rate", "400", log="one")
    two = home.popen("replay", str(other), "--rate", "800", log="two")
    wait_called(home, 3000)
    leave(one)
    leave(two)
    assert sorted(path.name for path in home.home.hosts.iterdir()) == ["replay-1", "replay-2"]
