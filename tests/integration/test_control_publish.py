"""What control publishes: whoever joins, whenever, on whatever broker, is whole."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.bundle import parse_bundle
from schemas.control import Entry, key_id_of, parse_entry
from schemas.limits import CHUNK_BYTES, EMBEDDED_LOG_BYTES_MAX, MIB
from tests.integration.test_control_api import ack, say
from tests.support.controlling import BURY_SOON, Controlled
from tests.support.home import wait_until
from tests.support.kafka import Kafka

PERMIT = 'permit (principal, action, resource);\n'
FAST = "[control]\nheartbeat_ms = 100\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Controlled]:
    with Controlled(tmp_path / "home", config=FAST) as made:
        yield made


def names(follower: Any, kind: str = "revocation") -> set[str]:
    return {entry.name for entry in follower.entries(kind)}


def fill(home: Controlled, count: int, *, reason: str = "r", begin: int = 0, lasts: int = 0) -> int:
    items = [
        {"kind": "session", "name": f"s{n}", "reason": reason, "for_s": lasts} for n in range(begin, begin + count)
    ]
    return int(home.client.change("revoke-many", items=items)["epoch"])


def set_policy(home: Controlled, text: str) -> None:
    home.home.policies.mkdir(exist_ok=True)
    (home.home.policies / "p.cedar").write_text(text)


def wait_policy(home: Controlled, what: Any) -> Any:
    return wait_until(lambda: what(said := home.client.get("/policy")) and said, 30, lambda: f"it is; {home.said()}")


def published_policy(home: Controlled, digest: str) -> dict[str, Any]:
    """What the topic says of the set in force, once that is the one of this digest."""

    def look() -> dict[str, Any] | None:
        entry = home.joined().get("policy/main")
        return dict(entry.value or {}) if entry is not None and (entry.value or {})["digest"] == digest else None

    return dict(wait_until(look, 30, f"policy {digest[:12]} is published"))


# -- the embedded broker -----------------------------------------------------------------------------------------------


def test_a_new_broker_has_the_whole_state_at_once(home: Controlled) -> None:
    set_policy(home, PERMIT)
    home.start_all()
    fill(home, 50)
    home.client.change("unrevoke", kind="session", name="s7")
    published_policy(home, wait_policy(home, lambda said: said["digest"])["digest"])
    before = home.joined()
    home.kill("broker")
    epoch = home.client.change("revoke", kind="agent", name="meanwhile", reason="leak")["epoch"]
    assert epoch == before.epoch + 1, "a change is made while there is no broker"
    home.start("broker")
    begun = time.monotonic()
    after = home.joined()
    assert time.monotonic() - begun < 20
    assert names(after) == names(before) | {"agent:meanwhile"}
    assert after.counter > before.counter
    assert len(home.read("wardline.bundles")) == 1


def test_what_is_changed_while_a_broker_comes_back_is_not_lost(home: Controlled) -> None:
    """Changes that are made while the topic is read and repaired belong to one side or the other of it, never to none."""
    home.start_all()
    fill(home, 200)
    done = threading.Event()
    made: list[int] = []

    def change() -> None:
        while not done.is_set():
            home.client.change("revoke", kind="session", name=f"again-{len(made) % 20}", reason=f"{len(made)}")
            made.append(1)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(4):
            home.kill("broker")
            home.start("broker")
            time.sleep(0.7)
    finally:
        done.set()
        changing.join()
    assert len(made) > 20
    follower = home.joined()
    live = {one["key"]: one["value"] for one in home.client.get("/live")["entries"]}
    assert live == {entry.key: entry.value for entry in follower.entries()}


@pytest.mark.soak
def test_a_full_log_that_is_changed_again_and_again_stays_readable(home: Controlled) -> None:
    """The broker drops the oldest above 5 MiB: everything that is live must always be in what is left."""
    home.start_all()
    size = 0
    while size < EMBEDDED_LOG_BYTES_MAX * 0.93:
        fill(home, 500, begin=home.client.get("/status")["live"], reason="r" * 100)
        size = home.client.get("/status")["live_bytes"]
    live = home.client.get("/status")["live"]
    for turn in range(5):
        for part in range(0, live - 500, 1_000):
            fill(home, min(1_000, live - part), begin=part, reason=f"{turn}" * 100)
        assert home.joined().live == home.client.get("/status")["live"]
    published = sum(len(one.value) for one in home.read())
    assert published > 3 * MIB, "so much was published that the broker had to drop some"
    assert published < 5 * MIB
    time.sleep(3)
    quiet = home.joined()
    assert quiet.live == home.client.get("/status")["live"]


def test_what_the_embedded_broker_cannot_keep_is_refused_with_the_limit(home: Controlled) -> None:
    home.start_all()
    fault = ""
    for part in range(6):
        items = [{"kind": "session", "name": f"{part}-{n}", "reason": "r" * 900} for n in range(1_000)]
        request = {"id": f"request-of-part-{part}", "do": "revoke-many", "items": items}
        status, answer = home.client.ask("POST", "/changes", request)
        if status != 200:
            fault = answer["error"]
            break
    assert f"limit is {EMBEDDED_LOG_BYTES_MAX} on the embedded broker" in fault
    home.client.change("pause", reason="there is always room for this")
    assert home.joined().get("pause") is not None


@pytest.mark.soak
def test_a_host_that_lacks_something_gets_the_whole_state_again(home: Controlled) -> None:
    home.start_all()
    fill(home, 20)
    key = Ed25519PrivateKey.generate()
    home.client.change("enforcer-add", name="h", key=key.public_key().public_bytes_raw().hex())
    time.sleep(0.3)

    def count() -> int:
        return sum(1 for one in home.read() if one.key.startswith(b"revocation/"))

    assert count() == 20
    begun = time.monotonic()
    for _ in range(3):
        say(home, (key, ack("h", 1, state="stale", why="a digest differs")))
    wait_until(lambda: count() == 40, 30, "the whole state is there a second time")
    assert len(home.read("wardline.bundles")) == 2, "and so is the bundle, which it may be that it lacks"
    time.sleep(1)
    assert count() == 40 or time.monotonic() - begun > 9, "and not more often than every ten seconds"


@pytest.mark.soak
def test_an_old_entry_that_somebody_puts_back_is_removed_again(home: Controlled) -> None:
    """It is signed and was true once; the topic has forgotten its removal, so whoever joins cannot know that it is over."""
    home.start_all()
    key = Ed25519PrivateKey.generate()
    home.client.change("enforcer-add", name="h", key=key.public_key().public_bytes_raw().hex())
    home.client.change("revoke", kind="session", name="over", reason="r")
    home.joined()
    old = next(one for one in home.read() if one.key == b"revocation/session:over")
    home.client.change("unrevoke", kind="session", name="over")
    home.kill("broker")
    home.start("broker")
    assert names(home.joined()) == set()
    produce(home.servers(), (old.key.decode(), old.value))

    def healed() -> bool:
        say(home, (key, ack("h", 1, state="stale", why="a digest differs")))
        last = [one for one in home.read() if one.key == old.key and one.value][-1]
        return parse_entry(last.value).entry.value is None

    wait_until(healed, 60, lambda: f"its removal is there again; {home.said()}", every=1.0)
    assert names(home.joined()) == set()


# -- expiry, policies, keys of the home --------------------------------------------------------------------------------


def test_a_revocation_ends_by_an_entry(home: Controlled) -> None:
    home.start_all()
    fill(home, 3, lasts=2)
    home.client.change("revoke", kind="agent", name="stays", reason="leak")
    assert len(names(home.joined())) == 4
    wait_until(lambda: home.client.get("/status")["live"] == 3, 30, "they have ended")
    follower = home.joined()
    assert names(follower) == {"agent:stays"}
    ends = home.client.get("/audit?key=revocation/session:s0")["entries"]
    assert [(one["actor"], one["value"] is None) for one in ends][-1] == ("control", True)
    assert ends[1]["time_ns"] / 1e9 >= ends[0]["value"]["expires"]


def test_what_ended_while_control_was_down_ends_when_it_is_back(home: Controlled) -> None:
    home.start_all()
    fill(home, 3, lasts=1)
    home.kill()
    time.sleep(1.5)
    home.start()
    wait_until(lambda: home.client.get("/live?kind=revocation")["entries"] == [], 30, "they have ended")
    assert names(home.joined()) == set()


def test_a_policy_set_is_in_the_topics_soon_after_it_was_written(home: Controlled) -> None:
    home.start_all()
    empty = wait_policy(home, lambda said: said["digest"])["digest"]
    set_policy(home, PERMIT)
    digest = wait_policy(home, lambda said: said["digest"] != empty)["digest"]
    facts = published_policy(home, digest)
    assert (facts["policies"], facts["origin"]) == (1, "files")
    chunks = [one for one in home.read("wardline.bundles") if one.key.startswith(digest.encode())]
    assert [one.key.decode() for one in chunks] == [f"{digest}/{n}" for n in range(facts["chunks"])]
    packed = b""
    for number, one in enumerate(chunks):
        assert one.value[:4] == b"WLB1"
        assert one.value[4:36].hex() == digest
        assert one.value[36:44] == number.to_bytes(4, "little") + len(chunks).to_bytes(4, "little")
        packed += one.value[44:]
    data = pa.decompress(packed, decompressed_size=facts["bytes"], codec="zstd", asbytes=True)
    assert parse_bundle(data).digest == digest
    assert len(packed) == facts["packed"]


def test_a_big_policy_set_travels_in_chunks(home: Controlled) -> None:
    rng = os.urandom(1_200_000).hex()
    home.home.policies.mkdir()
    text = "".join(
        f'permit (principal == Agent::"{rng[at : at + 200]}", action, resource);\n' for at in range(0, len(rng), 200)
    )
    set_policy(home, text)
    home.start_all()
    digest = wait_policy(home, lambda said: said["digest"])["digest"]
    published_policy(home, digest)
    chunks = [one for one in home.read("wardline.bundles") if one.key.startswith(digest.encode())]
    assert len(chunks) >= 2
    assert all(len(one.value) <= CHUNK_BYTES + 44 for one in chunks)


def test_a_bad_set_keeps_the_old_one_and_says_where_it_is_bad(home: Controlled) -> None:
    set_policy(home, PERMIT)
    home.start_all()
    digest = wait_policy(home, lambda said: said["digest"])["digest"]
    set_policy(home, PERMIT + "permit (principal, action;\n")
    said = wait_policy(home, lambda said: said["problem"])
    assert said["digest"] == digest
    assert (said["problem"]["line"], said["problem"]["column"]) == (2, 26)
    assert said["problem"]["file"].endswith("p.cedar")
    assert said["problem"]["text"].startswith(f"{said['problem']['file']}:2:26: ")
    assert said["problem"]["text"] in (home.home.log / "control.log").read_text()
    run_file = home.home.run_file("control")
    wait_until(lambda: json.loads(run_file.read_text())["policy_problem"] == said["problem"], 30, "the run file says so too")
    set_policy(home, PERMIT + "// right again\n")
    wait_policy(home, lambda said: said["problem"] is None)
    (home.home.policies / "p.cedar").chmod(0)
    if os.geteuid() != 0:  # root reads it all the same
        wait_policy(home, lambda said: said["problem"])


def test_a_rollback_stands_over_a_restart_and_until_the_files_change(home: Controlled) -> None:
    set_policy(home, PERMIT)
    home.start_all()
    first = wait_policy(home, lambda said: said["digest"])["digest"]
    set_policy(home, PERMIT + "forbid (principal, action, resource);\n")
    second = wait_policy(home, lambda said: said["digest"] != first)["digest"]
    assert home.client.change("policy-rollback")["result"] == {"digest": first, "from": second}
    home.kill()
    home.kill("broker")
    home.start("broker")
    home.start()
    time.sleep(0.5)
    assert home.client.get("/policy")["digest"] == first
    assert published_policy(home, first)["origin"] == "rollback"
    assert [one for one in home.read("wardline.bundles") if one.key.startswith(first.encode())]
    set_policy(home, PERMIT + PERMIT)
    wait_policy(home, lambda said: said["digest"] not in (first, second))


def pin(home: Controlled, role: str, name: str) -> str:
    """Put the public key of a new host or worker where this home pins it; returns it in hex."""
    public = Ed25519PrivateKey.generate().public_key()
    folder = home.home.trusted(role)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pub").write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public.public_bytes_raw().hex()


def test_hosts_and_workers_of_the_home_are_registered_and_stay_removed(home: Controlled) -> None:
    public = pin(home, "hosts", "enforce-1")
    home.start_all()
    other = pin(home, "workers", "work-1")
    (home.home.trusted("hosts") / "broken.pub").write_text("nothing")
    follower = wait_until(lambda: (f := home.joined()) and f.get("worker/work-1") and f, 30, "the worker is registered")
    assert follower.get("enforcer/enforce-1").value == {"key": public}
    assert follower.get("worker/work-1").value == {"key": other}
    assert follower.get("enforcer/enforce-1").actor == "home"
    assert "broken.pub: is not registered: is no public key" in home.said()
    home.client.change("enforcer-remove", name="enforce-1")
    home.kill()
    home.start()
    time.sleep(0.5)
    assert home.joined().get("enforcer/enforce-1") is None, "what an operator took is not given back by a restart"
    home.client.change("enforcer-add", name="enforce-1", key=public)
    assert home.joined().get("enforcer/enforce-1") is not None
    new = pin(home, "hosts", "enforce-1")
    wait_until(lambda: home.client.get("/live?kind=enforcer")["entries"][0]["value"]["key"] == new, 30, "the new key is known")


# -- control's keys ----------------------------------------------------------------------------------------------------


def signers(home: Controlled) -> dict[str, bytes]:
    """Key -> who signed the last message of it."""
    return {one.key.decode(): parse_entry(one.value).key_id for one in home.read() if one.value}


def test_a_key_is_rotated_while_both_are_accepted_and_then_retired(home: Controlled) -> None:
    home.start_all()
    fill(home, 30)
    (old,) = home.pins()
    before = home.pins()
    new = bytes.fromhex(home.client.change("key-rotate")["result"]["key"])
    assert set(home.pins()) == {old, new}
    home.client.change("revoke", kind="agent", name="signed-by-the-new", reason="leak")
    follower = home.joined(pins=before, strict=True)
    assert "agent:signed-by-the-new" in names(follower), "who pins the old key alone learns the new one from the log"
    assert set(follower.keys) == {old, new}
    said = signers(home)
    assert (said[f"key/{new.hex()}"], said["revocation/session:s0"]) == (old, old)
    assert (said["revocation/agent:signed-by-the-new"], said["heartbeat"]) == (new, new)
    assert "is the one that signs" in home.client.refused("key-retire", key_id=new.hex())

    home.client.change("key-retire", key_id=old.hex())
    wait_until(lambda: f"key/{old.hex()}" not in {e.key for e in home.joined().entries()}, 30, "the old key is gone")
    assert set(home.pins()) == {new}
    assert set(home.joined(pins={new: home.pins()[new]}, strict=True).keys) == {new}
    assert {one for key, one in signers(home).items()} == {new}, "nothing that is live needs the old key"
    assert [path.stem for path in home.home.private_key("control", "x").parent.iterdir()] == [new.hex()]
    home.kill()
    home.kill("broker")
    home.start("broker")
    home.start()
    assert len(names(home.joined(strict=True))) == 31


def test_a_missing_control_key_is_named(home: Controlled) -> None:
    home.start_all()
    home.stop()
    (path,) = home.home.private_key("control", "x").parent.iterdir()
    data = path.read_bytes()
    path.unlink()
    assert home.start(wait=False).wait(60) == 2
    assert f"{path}: is missing" in home.said()
    path.write_bytes(data)
    path.chmod(0o644)
    assert home.start(wait=False).wait(60) == 2
    assert f"{path}: mode is 0644, must be 0600" in home.said()


def test_one_control_at_a_time_writes_a_journal(home: Controlled) -> None:
    home.start_all()
    with Controlled(home.home.root, config=FAST) as other:
        assert other.start(wait=False).wait(60) == 2
        assert f"the journal of control is held by process {home.pids()['control']}" in other.said()
    home.client.change("pause", reason="the first one goes on")


# -- a real Kafka ------------------------------------------------------------------------------------------------------


def produce(servers: str, *messages: tuple[str, bytes | None]) -> None:
    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=servers)
        await producer.start()
        for key, value in messages:
            await producer.send_and_wait("wardline.control", value, key=key.encode(), partition=0)
        await producer.stop()

    asyncio.run(send())


def entries(home: Controlled) -> list[Any]:
    return [one for one in home.read() if one.key != b"heartbeat"]


def test_a_restart_on_kafka_sends_only_what_is_missing(kafka: Kafka, tmp_path: Path) -> None:
    set_up = f"prefix = \"one.\"\n{FAST}"
    with Controlled(tmp_path / "home", kafka=kafka.address, config=set_up) as home:
        home.topic = "one.control"
        home.start()
        fill(home, 40)
        wait_policy(home, lambda said: said["digest"])
        home.client.change("unrevoke", kind="session", name="s1")
        before = home.joined()
        count = len(entries(home))
        home.kill()
        home.start()
        assert home.joined().counter > before.counter
        assert len(entries(home)) == count, "nothing was missing, nothing is sent"
        assert len(home.read("one.bundles")) == 1


def test_entries_of_strangers_are_removed_and_our_own_come_back(kafka: Kafka, tmp_path: Path) -> None:
    with Controlled(tmp_path / "home", kafka=kafka.address, config=FAST) as home:
        home.start()
        fill(home, 5)
        epoch = home.joined().epoch
        home.stop()
        stranger = Ed25519PrivateKey.generate()
        key_id = key_id_of(stranger.public_key().public_bytes_raw())

        def forged(key: str, value: Any, number: int) -> tuple[str, bytes]:
            entry = Entry(epoch=number, key=key, time_ns=1, actor="evil", value=value)
            return key, entry.encode(key_id, stranger.sign)

        revocation = {"kind": "session", "name": "s", "cascade": False, "reason": "r", "not_before": 0, "expires": 0}
        produce(
            kafka.address,
            forged("revocation/session:evil", revocation, 1 << 40), forged("revocation/session:s1", None, 1 << 41),
            forged("revocation/session:s2", revocation, epoch + 1), ("revocation/session:s3", None), ("agent/x", b"rubbish"),
        )  # fmt: skip
        home.start()
        follower = home.joined(strict=True)
        assert names(follower) == {f"session:s{n}" for n in range(5)}
        last = {one.key.decode(): one.value for one in home.read() if one.value}
        assert parse_entry(last["revocation/session:evil"]).entry.value is None
        assert parse_entry(last["revocation/session:s2"]).entry.value is not None
        assert next(one for one in reversed(home.read()) if one.key == b"revocation/session:s3").value is not None


@pytest.mark.soak
def test_a_removed_key_leaves_kafka_for_good_after_a_while(kafka: Kafka, tmp_path: Path) -> None:
    with Controlled(tmp_path / "home", kafka=kafka.address, config=f"prefix = \"three.\"\n{FAST}") as home:
        home.topic = "three.control"
        home.start(step=BURY_SOON)
        fill(home, 3)
        home.client.change("unrevoke", kind="session", name="s1")
        home.client.change("unrevoke", kind="session", name="s2")
        home.client.change("revoke", kind="session", name="s2", reason="again")

        def buried() -> set[bytes]:
            return {one.key for one in home.read() if one.value is None}

        assert buried() == set(), "at first every reader hears of it"
        wait_until(lambda: buried() == {b"revocation/session:s1"}, 30, "what is not live is buried, and nothing else")
        home.kill()
        home.start(step=BURY_SOON)
        assert names(home.joined(strict=True)) == {"session:s0", "session:s2"}
        time.sleep(2)
        assert sum(one.value is None for one in home.read()) == 1, "it is buried once"


def test_control_goes_on_when_kafka_comes_back(kafka: Kafka, tmp_path: Path) -> None:
    with Controlled(tmp_path / "home", kafka=kafka.address, config=f"prefix = \"two.\"\n{FAST}") as home:
        home.topic = "two.control"
        home.start()
        fill(home, 5)
        kafka.stop()
        epoch = home.client.change("revoke", kind="agent", name="meanwhile", reason="leak")["epoch"]
        time.sleep(2)
        kafka.start()
        wait_until(lambda: home.client.get("/status")["published"] >= epoch, 60, lambda: f"it is published; {home.said()}")
        assert "agent:meanwhile" in names(home.joined(seconds=20))
