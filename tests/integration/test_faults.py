"""Processes die and stop while a tenth of AgentDojo's calls is replayed: each line is stored once, and nothing is missing."""

import json
import random
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.keys import own_key
from tests.support.faults import (
    Fault,
    Movement,
    kafka_down,
    kafka_stopped,
    kill,
    replaying,
    stop_for,
    stop_in_insert,
    while_replaying,
)
from tests.support.home import Wardline, wait_until
from tests.support.jobs import Line, agentdojo_calls, assert_recorded, every, install_policies, judged
from tests.support.kafka import Kafka

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]

STALL_S = 20.0
"""Longest time without a new record, beyond an outage."""

QUICK = "[worker]\nsession_timeout_ms = 6000\n"
"""The shortest session that a broker grants by default, so that a stopped worker loses its partitions soon."""


@pytest.fixture
def tenth(tmp_path: Path) -> Path:
    return every(agentdojo_calls(), 10, tmp_path / "tenth.jsonl")


def on_a_real_kafka(home: Wardline, kafka: Kafka, more: str = "") -> None:
    """Use a real broker, with topics and a group that no other test has."""
    home.kafka = kafka.address
    home.home.config.write_text(f'[kafka]\nprefix = "{secrets.token_hex(4)}."\n{more}')


def ready(home: Wardline, *words: str) -> None:
    install_policies(home)
    home.up(*words)


def finish(home: Wardline, expected: list[Line]) -> None:
    home.run("status", "--wait", "60")  # whoever was killed last is back
    home.wait_stored()
    assert_recorded(home, expected)


@pytest.mark.soak
def test_each_process_of_the_embedded_default_is_killed_in_turn(wardline: Wardline, tenth: Path) -> None:
    ready(wardline)
    names = ("work-1", "replay-1", "store", "broker", "enforce-1")
    while_replaying(wardline, tenth, 600, [kill(wardline, name) for name in names], every_s=3, rounds=1)
    finish(wardline, judged(tenth))


@pytest.mark.soak
def test_each_process_is_killed_in_turn_with_a_real_kafka(wardline: Wardline, kafka: Kafka, tenth: Path) -> None:
    on_a_real_kafka(wardline, kafka, QUICK)
    ready(wardline, "--workers", "2")
    faults: list[Fault] = [kill(wardline, "work-1"), kafka_down(kafka, 2), kill(wardline, "replay-1"), kill(wardline, "store")]
    while_replaying(wardline, tenth, 350, faults, every_s=3, rounds=1)
    finish(wardline, judged(tenth))


@pytest.mark.soak
def test_a_worker_that_was_stopped_in_an_insert_comes_back_and_stores_nothing_twice(
    wardline: Wardline, kafka: Kafka, tenth: Path
) -> None:
    on_a_real_kafka(wardline, kafka, QUICK)
    ready(wardline, "--workers", "2")
    outage = 14.0
    with Movement(wardline) as movement, replaying(wardline, tenth, 500):
        time.sleep(3)
        stop_in_insert(wardline, "work-1", outage)()
    finish(wardline, judged(tenth))
    assert movement.worst < STALL_S


@pytest.mark.soak
def test_a_second_worker_under_the_same_slot_makes_one_of_them_leave(
    wardline: Wardline, kafka: Kafka, tenth: Path, tmp_path: Path
) -> None:
    on_a_real_kafka(wardline, kafka)
    ready(wardline, "--workers", "2")
    with Wardline(tmp_path / "other") as other, Movement(wardline) as movement:
        # another machine, to which somebody has copied the whole set-up, the slot included
        store = wardline.status()["processes"]
        address = next(process["address"] for process in store if process["name"] == "store")
        own_key(wardline.home, "hosts", "replay-1")  # pinned before it is copied; frames of unknown hosts are dead letters
        other.home.config.write_bytes(wardline.home.config.read_bytes())
        for folder in ("keys", "trust", "secrets"):
            shutil.copytree(wardline.home.root / folder, other.home.root / folder)
        other.kafka, other.clickhouse = kafka.address, f"http://{address}"
        with replaying(wardline, tenth, 500):
            time.sleep(3)
            clash = other.popen("work", "--slot", "1", log="work-1")
            wait_until(
                lambda: clash.poll() is not None or "again" in wardline.said("up"), 60,
                lambda: f"one of them leaves; {other.said('work-1')} {wardline.said('work-1')}",
            )  # fmt: skip
    finish(wardline, judged(tenth))
    assert movement.worst < STALL_S


@pytest.mark.soak
def test_everything_restarts_and_goes_on(wardline: Wardline, tmp_path: Path) -> None:
    """The embedded broker's offsets start at 0 again: nothing may be taken for a duplicate because of its offset."""
    first = every(agentdojo_calls(), 137, tmp_path / "first.jsonl")
    ready(wardline)
    wardline.replay(first)
    assert wardline.stop("up") == 0
    wardline.up()
    wardline.replay(first)
    assert_recorded(wardline, judged(first), times=2)
    wardline.stop("up")
    wardline.up()
    assert_recorded(wardline, judged(first), times=2)


def test_the_store_is_away_while_more_is_produced_than_the_embedded_broker_can_hold(wardline: Wardline, tmp_path: Path) -> None:
    """12 MiB per partition; the broker drops the oldest above 5 MiB without a word."""
    file, lines = tmp_path / "bulky.jsonl", 60_000
    rng = random.Random(7)
    with file.open("w") as out:
        for number in range(lines):
            call = {
                "time": 1_750_000_000 + number, "agent": "assistant", "session": f"s{number}", "action": "mcp:tools/call",
                "resource": 'Tool::"workspace/search_emails"', "trace_id": f"{rng.getrandbits(128):032x}", "outcome": "error",
                "error": f"{rng.getrandbits(3200):x}",
            }  # fmt: skip
            out.write(json.dumps(call) + "\n")
    wardline.home.config.write_text("[kafka]\npartitions = 2\n")
    ready(wardline)
    wardline.sigstop("store")
    process = wardline.popen("replay", str(file))
    host = wardline.home.run_file("replay-1")

    def outbox() -> int:
        return int(json.loads(host.read_bytes()).get("outbox_bytes", 0)) if host.exists() else 0

    wait_until(lambda: outbox() > 2 * (12 << 20), 120, lambda: f"{outbox()} bytes are sealed: {wardline.said('replay')}")
    wardline.sigcont("store")
    assert process.wait(240) == 0, wardline.said("replay")
    assert_recorded(wardline, [Line("assistant", "mcp:tools/call", 'Tool::"workspace/search_emails"', True)] * lines)


# -- the matrix in full, in `make soak` ------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("name", ["work-1", "replay-1", "store", "broker"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_one_process_of_the_embedded_default_dies_or_stops(wardline: Wardline, tenth: Path, name: str, how: str) -> None:
    ready(wardline)
    fault = kill(wardline, name) if how == "killed" else stop_for(wardline, name, 40)
    # a broker that forgets costs its worker a new start each time, which takes some seconds of two busy cores
    _cause(wardline, tenth, fault, how, 8 if name in ("broker", "work-1") else 4)
    finish(wardline, judged(tenth))


@pytest.mark.soak
@pytest.mark.parametrize("name", ["work-1", "replay-1", "store", "kafka"])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_one_process_dies_or_stops_with_a_real_kafka(
    wardline: Wardline, kafka: Kafka, tenth: Path, name: str, how: str
) -> None:
    on_a_real_kafka(wardline, kafka)
    ready(wardline, "--workers", "2")
    if name == "kafka":
        fault = kafka_down(kafka, 1) if how == "killed" else kafka_stopped(kafka, 40)
    else:
        fault = kill(wardline, name) if how == "killed" else stop_for(wardline, name, 40)
    _cause(wardline, tenth, fault, how, 4)
    finish(wardline, judged(tenth))


def _cause(home: Wardline, file: Path, fault: Fault, how: str, every_s: float) -> None:
    """Kill every few seconds until the end of the replay; stop for 40 s twice, so that there is a time after it too."""
    if how == "killed":
        while_replaying(home, file, 300, [fault], every_s=every_s)
    else:
        while_replaying(home, file, 300, [fault], every_s=8, rounds=2)


def _added(home: Wardline) -> None:
    home.start("work-3", "--slot", "3")
    time.sleep(5)


def _removed(home: Wardline) -> None:
    home.start("work-3", "--slot", "3")
    time.sleep(5)
    home.stop("work-3")


CHANGES: dict[str, Callable[[Wardline, Kafka], tuple[Fault, float]]] = {
    "a worker is added": lambda home, _: (lambda: _added(home), 0),
    "a worker is added and removed": lambda home, _: (lambda: _removed(home), 0),
    "a worker is killed": lambda home, _: (kill(home, "work-2"), 0),
    "a worker is stopped past its session in mid-insert": lambda home, _: (stop_in_insert(home, "work-2", 30), 0),
    "the broker is down for a minute": lambda _, kafka: (kafka_down(kafka, 60), 60),
}


@pytest.mark.soak
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_mid_load_stalls_nobody_for_long(wardline: Wardline, kafka: Kafka, tenth: Path, change: str) -> None:
    on_a_real_kafka(wardline, kafka)
    ready(wardline, "--workers", "2")
    fault, outage = CHANGES[change](wardline, kafka)
    with Movement(wardline) as movement, replaying(wardline, tenth, 200):
        time.sleep(5)
        fault()
    finish(wardline, judged(tenth))
    assert movement.worst < outage + STALL_S
