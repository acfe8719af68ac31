"""`wardline up` as a user meets it, on the embedded default: real processes, real signals."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from schemas.process import is_alive, read_run_file
from tests.support.home import Wardline, names, wait_until
from tests.support.kafka import Kafka

NAMES = ["broker", "store", "control", "work-1", "enforce-1", "door-1"]


def pids(home: Wardline) -> dict[str, int]:
    return {name: home.pid(name) for name in NAMES}


def started_again(home: Wardline, name: str, old: int) -> int:
    def look() -> int:
        said = read_run_file(home.home.run_file(name))
        return int(said["pid"]) if said and said["alive"] and said["pid"] != old and said["state"] == "ready" else 0

    return int(wait_until(look, 30, lambda: f"{name} is started again; up said {home.said('up')}"))


def test_everything_starts_is_kept_alive_and_stops_on_one_ctrl_c(wardline: Wardline) -> None:
    root = wardline.home.root
    process = wardline.up(wait=False)
    assert wardline.run("status", "--wait", "60", "--json").returncode == 0
    status = wardline.status()
    assert status["ready"]
    assert names(status["processes"]) == NAMES
    assert all(p["state"] == "ready" and p["pid"] and p["address"] for p in status["processes"])
    assert re.fullmatch(r"[0-9a-f]{64}", status["policy_digest"])
    assert status["deadletters"] == 0
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    secrets = [*root.glob("keys/*/*.key"), *root.glob("secrets/*")]
    assert len(secrets) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}

    # each answers Prometheus
    for p in status["processes"]:
        with urllib.request.urlopen(f"http://{p['metrics']}/metrics", timeout=10) as answer:
            assert b"process_resident_memory_bytes" in answer.read(), p["name"]

    # the second `up` says who holds the home
    done = wardline.run("up", check=False)
    assert (done.returncode, done.stderr) == (
        2, f"wardline: `{root}` is held by process {process.pid}, another `wardline up`\n",
    )  # fmt: skip

    # the commands that it prints work as they stand
    said = wardline.said("up")
    tried = [shlex.split(line) for line in said.splitlines() if re.match(r"  \S.* (replay|sql|status) ", line)]
    assert len(tried) == 3
    for words in tried:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
    lines = len((root / "calls.jsonl").read_text().splitlines())
    assert wardline.sql("SELECT count(), uniqExact(call_id), countIf(outcome = '') FROM calls") == [(lines, lines, 0)]

    # whoever is killed comes back, and the whole works with it
    for name in NAMES:
        old = wardline.kill(name)
        started_again(wardline, name, old)
    wait_until(lambda: wardline.status()["ready"], 30, "all is ready again")
    wardline.replay(root / "calls.jsonl")
    assert wardline.sql("SELECT count(), uniqExact(call_id) FROM calls") == [(2 * lines, 2 * lines)]
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]
    for name in NAMES:
        assert f"{name} was killed by SIGKILL" in wardline.said("enforce-1" if name == "door-1" else "up")

    before = pids(wardline)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(is_alive(pid) for pid in before.values())
    assert not list(wardline.home.run.glob("*.json"))
    assert wardline.said("up").rstrip().endswith("stopped")


def test_what_was_stored_is_there_after_a_restart_and_new_calls_join_it(wardline: Wardline) -> None:
    process = wardline.up("--enforcers", "2")
    calls = wardline.home.root / "calls.jsonl"
    wardline.replay(calls)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    wardline.up()
    wardline.replay(calls)
    lines = len(calls.read_text().splitlines())
    assert wardline.sql("SELECT count(), uniqExact(call_id) FROM calls") == [(2 * lines, 2 * lines)]


def test_the_end_of_up_by_force_takes_everything_down_within_two_seconds(wardline: Wardline) -> None:
    process = wardline.up()
    before = pids(wardline)
    process.kill()
    process.wait()
    died = time.monotonic()
    wait_until(lambda: not any(is_alive(pid) for pid in before.values()), 10, "all children are gone")
    assert time.monotonic() - died < 2.0
    wardline.up()  # and nothing that they left behind is in the way


def test_a_first_policy_set_that_is_wrong_permits_nothing_and_is_named_by_file_line_and_column(wardline: Wardline) -> None:
    wardline.write_policies("permit (principal, action, resource);\nforbid (principal, action, resource) when { 1 };\n")
    wardline.up()
    where = f"{wardline.home.policies / 'policy.cedar'}:2:38: conditions (`when`) are not supported yet"
    wait_until(lambda: f"policies: {where}" in wardline.run("status", check=False).stdout, 10, "status says why")
    assert where in wardline.said("up") + wardline.said("control")
    calls = wardline.home.root / "calls.jsonl"
    wardline.replay(calls)
    assert wardline.sql("SELECT DISTINCT verdict, reason FROM calls") == [("deny", "no-permit")]
    wardline.write_policies("permit (principal, action, resource);\n")
    wait_until(lambda: wardline.run("policy", "status", check=False).returncode == 0, 10, "the set is in force")
    wardline.replay(calls)
    assert wardline.sql("SELECT reason, count() FROM calls WHERE reason != 'no-permit' GROUP BY reason") == [("permit", 1000)]


@pytest.mark.soak
def test_what_was_decided_holds_after_everything_was_restarted_before_the_first_call(wardline: Wardline) -> None:
    """The embedded broker forgets everything, and is not asked for anything that control knows."""
    permit = '@id("all") permit (principal, action, resource);\n'
    wardline.write_policies(permit + '@id("no") forbid (principal, action, resource == Tool::"bank/send_money");\n')
    process = wardline.up()
    wardline.write_policies(permit)
    wait_until(lambda: json.loads(wardline.run("policy", "status", "--json", check=False).stdout)["previous"], 10, "an edit")
    wardline.run("policy", "rollback")
    digest = wardline.status()["policy_digest"]
    wardline.run("agent", "add", "removed", "--owner", "o")
    wardline.run("agent", "remove", "removed")
    wardline.run("revoke", "session", "s-1", "--reason", "drill")
    calls = wardline.home.root / "restarted.jsonl"
    fields = {"time": 1, "agent": "free", "action": "mcp:tools/call", "resource": 'Tool::"bank/read"', "session": "s-0"}
    changes = ({}, {"session": "s-1"}, {"agent": "removed"}, {"resource": 'Tool::"bank/send_money"'})
    calls.write_text("".join(json.dumps(fields | change) + "\n" for change in changes))

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process = wardline.up()
    wardline.replay(calls)
    expected = {("permit",): 1, ("revoked",): 2, ("forbid",): 1}
    assert {(reason,): count for reason, count in wardline.sql("SELECT reason, count() FROM calls GROUP BY reason")} == expected
    status = json.loads(wardline.run("policy", "status", "--json").stdout)
    assert (status["digest"], status["doors"][0]["digest"]) == (digest, digest)

    wardline.run("pause")
    process.kill()
    process.wait()
    wardline.up()
    assert wardline.status()["control"]["paused"]
    wardline.replay(calls)
    assert wardline.sql("SELECT count() FROM calls WHERE reason = 'paused'") == [(4,)]


def test_a_process_that_cannot_start_is_named_with_what_it_said_and_the_others_stop(wardline: Wardline) -> None:
    key = wardline.home.private_key("hosts", "enforce-1")
    key.parent.mkdir(mode=0o700, parents=True)
    key.write_text("no key")
    key.chmod(0o644)
    done = wardline.run("up", "--port-base", "0", check=False)
    assert done.returncode == 2
    assert done.stderr == f"wardline: enforce-1 does not start: {key}: mode is 0644, must be 0600\n"
    assert not list(wardline.home.run.glob("*.json"))


def test_a_port_that_is_taken_is_named_before_anything_starts(wardline: Wardline) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = wardline.run("up", "--port-base", str(port), check=False)
    assert done.returncode == 2
    # those behind it are free or not, as other programs of this machine have it
    said = re.fullmatch(
        r"wardline: port (\d+) of [a-z0-9-]+: address already in use; choose another --port-base, or 0 for free ports\n",
        done.stderr,
    )
    assert said is not None, done.stderr
    assert port <= int(said[1]) < port + 10


def test_a_kafka_that_is_not_there_fails_the_start_with_its_address(wardline: Wardline) -> None:
    done = wardline.run("up", "--port-base", "0", "--kafka", "127.0.0.1:1", check=False)
    assert done.returncode == 2
    assert done.stderr == "wardline: kafka at `127.0.0.1:1` cannot be reached\n"


def test_up_runs_on_a_real_kafka_with_two_workers_and_other_commands_follow_it(kafka: Kafka, tmp_path: Path) -> None:
    config = '[kafka]\nprefix = "up."\n'
    with Wardline(tmp_path / "home", config=config) as home:
        home.kafka = kafka.address
        process = home.up("--workers", "2")
        home.kafka = ""  # a living `up` says where its data goes
        status = home.status()
        assert names(status["processes"]) == ["store", "control", "work-1", "work-2", "enforce-1", "door-1"]
        assert status["servers"] == {"kafka": kafka.address}
        calls = home.home.root / "calls.jsonl"
        home.replay(calls)
        lines = len(calls.read_text().splitlines())
        assert home.sql("SELECT count(), uniqExact(call_id) FROM calls") == [(lines, lines)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_worker_that_was_started_alone_is_kept_and_passes_signals_on(kafka: Kafka, tmp_path: Path) -> None:
    with Wardline(tmp_path / "home", kafka=kafka.address, config='[kafka]\nprefix = "alone."\n') as home:
        home.start("store")
        home.start("control")
        environment = {key: value for key, value in os.environ.items() if key != "WARDLINE_PARENT"}
        with (tmp_path / "out").open("wb") as out:
            keeper = subprocess.Popen(home.words("work"), env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            first = home.wait_ready("work-1")
            assert first != keeper.pid
            done = home.run("work", "--slot", "1", check=False)
            assert (done.returncode, "work-1 is held by process" in done.stderr) == (2, True)
            keeper.terminate()
            assert keeper.wait(30) == 0
            assert not is_alive(first)
        finally:
            keeper.kill()
            keeper.wait()


@pytest.mark.parametrize("command", ["broker", "store"])
def test_a_process_alone_ends_on_ctrl_c_with_exit_code_0(wardline: Wardline, command: str) -> None:
    wardline.start(command)
    said = json.loads(wardline.home.run_file(command).read_bytes())
    assert said["address"].startswith("127.0.0.1:")
    assert wardline.stop(command, number=signal.SIGINT) == 0
