"""`wardline replay` with its real host and control, and no worker: what is in the frames, whatever is killed on the way."""

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

from enforcers.doors.progress import door_said
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


def controlled(home: Wardline) -> Wardline:
    """Start broker and control: without control nothing is decided, and without a worker nothing leaves the outbox."""
    home.start("broker")
    home.start("control")
    return home


@pytest.fixture
def home(wardline: Wardline) -> Wardline:
    """A home with the example policies in force."""
    shutil.copytree(EXAMPLES / "policies", wardline.home.policies)
    return controlled(wardline)


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
        assert {name: record[name] for name in ("ref", "verdict", "agent", "root", "chain", "depth", "door")} == {
            "ref": line.ref, "verdict": int(allowed), "door": "replay", "agent": line.agent, "root": line.chain[0],
            "chain": SEPARATOR.join(line.chain), "depth": len(line.chain),
        }, line  # fmt: skip
        assert record["outcome"] in ((Outcome.OPEN, line.outcome) if allowed else (Outcome.REFUSED,))
        assert (record["session"], record["action"], record["resource"]) == (line.session, line.action, line.resource)
        assert (record["trace_id"], record["parent_span"]) == (line.trace_id, line.parent_span)
        assert (record["credential"], record["proof"], record["tenant"]) == ("", "", "default")
        assert record["address"] == line.client == ""
        assert int(record["time"].timestamp() * 1_000_000) == line.time_ns // 1000
        end = {
            "kind": Kind.EFFECT, "outcome": line.outcome, "bytes_out": line.bytes_out, "bytes_in": line.bytes_in,
            "status": line.status, "error": line.error, "duration_us": line.duration_ns // 1000,
        }  # fmt: skip
        found = ended.get((record["boot"], record["seq"]), [])
        assert [{name: one[name] for name in end} for one in found] == [end] * allowed, line


def test_a_chain_that_is_too_deep_is_refused_and_kept_whole(wardline: Wardline, tmp_path: Path) -> None:
    wardline.write_policies("permit (principal, action, resource);")
    controlled(wardline)
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


def living_doors(home: Wardline) -> list[int]:
    """Their pids."""
    said = [read_run_file(file) or {} for file in home.home.run.glob("door-*.json")]
    return [int(one["pid"]) for one in said if one.get("alive")]


def die_and_resume(home: Wardline, path: Path, lines: int, rng: random.Random, kills: int, each: int) -> None:
    """Replay a file with `each` doors; kill the replay, its host, a door or several of them, `kills` times; then let it end."""
    for attempt in range(kills + 1):
        made = doors(home)
        words = ["--rate", "1500", "--doors", str(each)]
        process = home.popen("replay", str(path), "--resume", *words, log=f"replay-{attempt}")
        if attempt == kills:
            wait_called(home, lines, f"replay-{attempt}")
            wait_ended(home)
            assert leave(process) == 130
            return
        if rng.random() < 0.3:  # while its host starts, or adopts the doors before
            time.sleep(rng.uniform(0.2, 2.0))
        else:  # while it calls
            wait_until(lambda: doors(home) > made, 30, "a door is made")  # noqa: B023
            time.sleep(rng.uniform(0, 1.5))
        host, living = host_pid(home), living_doors(home)
        victims = rng.choice((("replay",), ("host",), ("door",), ("host", "replay"), ("door", "host", "replay")))
        if "host" in victims and host:
            kill(host)
        for pid in rng.sample(living, min(len(living), rng.choice((1, 1, each)))) if "door" in victims else ():
            kill(pid)
        time.sleep(rng.uniform(0, 0.8))
        kill(process.pid)
        process.wait(10)
        wait_until(lambda: not living_doors(home), 5, "the doors have left")


def each_line_once(home: Wardline, path: Path, lost_at_most: int) -> None:
    records = sealed(home.home)
    made, ended, verdicts = decisions(records), ends(records), cedar(path)
    assert [r["ref"] for r in made] == sorted(verdicts)
    assert [Verdict(r["verdict"]) for r in made] == [verdicts[r["ref"]] for r in made]
    assert all(len(found) == 1 for found in ended.values())
    assert set(ended) == {(r["boot"], r["seq"]) for r in made if r["verdict"] == Verdict.ALLOW}
    assert sum(found[0]["kind"] == Kind.LOST for found in ended.values()) <= lost_at_most


@pytest.mark.parametrize(("seed", "each"), [(0, 1), pytest.param(1, 4, marks=pytest.mark.soak)])
def test_each_line_is_called_once_whatever_is_killed(home: Wardline, tmp_path: Path, seed: int, each: int) -> None:
    path = repeat(tmp_path / "calls.jsonl", 6)
    die_and_resume(home, path, 6000, random.Random(seed), kills=3, each=each)
    each_line_once(home, path, lost_at_most=3 * each)
    assert len({r["boot"] for r in done(home)}) > each


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 20))
def test_each_line_is_called_once_whatever_is_killed_at_length(home: Wardline, tmp_path: Path, seed: int) -> None:
    path, each = repeat(tmp_path / "calls.jsonl", 25), 1 + seed % 4
    die_and_resume(home, path, 25_000, random.Random(seed), kills=12, each=each)
    each_line_once(home, path, lost_at_most=12 * each)


def test_a_host_that_dies_is_started_again_and_no_call_is_lost(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 4)
    process = home.popen("replay", str(path), "--rate", "1000", "--doors", "3")
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
    assert len({r["boot"] for r in records}) == 3
    assert "was killed by SIGKILL; it is started again" in home.said("replay")


def test_without_resume_lines_are_new_calls(home: Wardline) -> None:
    for times in (1, 2):
        process = home.popen("replay", str(SAMPLE))
        wait_called(home, times * 1000)
        leave(process)
    refs = [r["ref"] for r in done(home)]
    assert refs == [n for n in range(1, 1001) for _ in (1, 2)]


def test_policies_that_change_hold_for_the_calls_that_follow(wardline: Wardline, tmp_path: Path) -> None:
    wardline.write_policies(PERMIT_TOOLS)
    controlled(wardline)
    path = repeat(tmp_path / "calls.jsonl", 8)
    process = wardline.popen("replay", str(path), "--rate", "800", "--doors", "2")
    wait_called(wardline, 50)
    wardline.write_policies("forbid (principal, action, resource);")
    wait_until(lambda: len({r["policy_digest"] for r in done(wardline)}) == 2, 30, "the other policies hold")
    leave(process)
    made = sorted(done(wardline), key=lambda r: (r["boot"], r["seq"]))
    digests = [next(r["policy_digest"] for r in made), made[-1]["policy_digest"]]
    assert digests[0] != digests[1]
    for boot in {r["boot"] for r in made}:
        own = [r["policy_digest"] for r in made if r["boot"] == boot]
        assert own == sorted(own, key=digests.index)
    assert {r["verdict"] for r in made if r["policy_digest"] == digests[1]} == {Verdict.DENY}


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


def test_a_home_without_policies_refuses_every_call_and_says_so(wardline: Wardline) -> None:
    controlled(wardline)
    process = wardline.popen("replay", str(SAMPLE))
    wait_called(wardline, 1000)
    leave(process)
    assert "wardline: control has no policy in force, so every call is refused\n" in wardline.said("replay")
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


def test_a_killed_door_ends_the_run_which_says_how_to_go_on(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 4)
    process = home.popen("replay", str(path), "--rate", "1000", "--doors", "4")
    wait_called(home, 500)
    victim = read_run_file(home.home.run_file("door-3"))
    assert victim is not None
    kill(victim["pid"])
    wait_until(lambda: "door-3 was killed by SIGKILL; the other doors stop too" in home.said("replay"), 10, "its death is said")
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)  # nothing is stored here, and it would wait for that
    assert process.wait(30) == 1
    assert f" replay {path} --resume --home {home.home.root}" in home.said("replay")
    assert not living_doors(home)
    again = home.popen("replay", str(path), "--resume", log="again")
    wait_called(home, 4000, "again")
    wait_ended(home)
    leave(again)
    each_line_once(home, path, lost_at_most=1)
    assert len({r["boot"] for r in done(home)}) == 8


def test_one_signal_closes_every_door(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 10)
    process = home.popen("replay", str(path), "--rate", "1000", "--doors", "3")
    wait_called(home, 300)
    pids = living_doors(home)
    assert len(pids) == 3
    os.kill(pids[0], signal.SIGSTOP)  # one that is stopped is asked too
    assert leave(process) == 130
    assert not living_doors(home)
    said = [door_said(folder) for folder in home.home.hosts.glob("*/doors/*")]
    assert [one and one["closed"] for one in said] == [True] * 3
    assert "of 10,000 lines called; to go on: " in home.said("replay")
    wait_ended(home)
    assert {r["kind"] for r in sealed(home.home)} == {Kind.DECISION, Kind.EFFECT}


def test_doors_leave_when_their_replay_is_killed(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 10)
    process = home.popen("replay", str(path), "--rate", "1000", "--doors", "3")
    wait_called(home, 300)
    kill(process.pid)
    process.wait(10)
    wait_until(lambda: not living_doors(home), 2, "the doors have left")
    said = [door_said(folder) for folder in home.home.hosts.glob("*/doors/*")]
    assert [one and one["closed"] for one in said] == [True] * 3


def test_without_control_it_waits_and_records_nothing(wardline: Wardline) -> None:
    process = wardline.popen("replay", str(SAMPLE))
    wait_until(lambda: "waiting for host replay-1, which says: " in wardline.said("replay"), 30, "it says what it waits for")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    assert done(wardline) == []
    assert "stopped before the first call; to go on: " in wardline.said("replay")


def test_a_resumed_run_has_the_doors_of_its_first(home: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 3)
    process = home.popen("replay", str(path), "--rate", "500", "--doors", "2")
    wait_called(home, 300)
    leave(process)
    assert refused(home, str(path), "--resume", "--doors", "3").endswith(
        f"the last run of {path} has --doors 2, --resume cannot make it 3"
    )
    again = home.popen("replay", str(path), "--resume", log="again")
    wait_called(home, 3000, "again")
    wait_ended(home)
    leave(again)
    each_line_once(home, path, lost_at_most=0)
    parts: dict[int, set[int]] = {}
    for record in done(home):
        parts.setdefault(record["boot"], set()).add(record["ref"] % 2)
    assert sorted(map(list, parts.values())) == [[0], [0], [1], [1]]
