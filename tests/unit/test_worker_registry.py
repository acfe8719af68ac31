"""Whose frames count: what a worker believes of the log, what it keeps of it, and when it may say that nobody knows a host."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.shells.worker import registry as module
from pipeline.shells.worker.registry import Registry, registry_file
from pipeline.shells.worker.scribe import Whole
from schemas.config import Config
from schemas.control import Entry
from schemas.errors import OperatorFault
from schemas.home import Home
from tests.support.entries import NEXT, STRANGER, Journal, revocation
from tests.support.frames import Host
from tests.support.registry import Log, pin, registered, until


class Notes:
    """A scribe that remembers what it is told."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.wholes: list[tuple[Whole | None, list[Entry]]] = []
        self.entries: list[Entry] = []

    def catch_up(self, past: Any) -> None:
        self.wholes.append((self.registry.whole(), [entry for entry, _ in past]))

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


class Bench:
    """A worker's registry, the log that it follows and the journal that writes it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.journal = Journal()
        self.log = Log()
        self.tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self) -> None:
        """A worker starts: everything that was in its memory is gone."""
        self.registry = Registry(self.home, Config(), slot="work-1", servers="nowhere:1")
        self.notes = Notes(self.registry)
        self.registry.tell(self.notes)  # type: ignore[arg-type]
        follower = self.registry._new_follower()
        assert follower is not None
        self.registry._follower = self.follower = follower
        self.stop()
        self.tasks = [asyncio.create_task(self.registry._follow(self.log, follower))]

    def stop(self) -> None:
        """kill -9."""
        for task in self.tasks:
            task.cancel()

    def say(self, *messages: bytes | None) -> None:
        """Control publishes messages and its heartbeat."""
        self.log.append(*messages, self.journal.beat())

    async def joined(self) -> None:
        """The log has been whole."""
        await until(lambda: self.registry.say()["synced"])

    def kept(self) -> dict[str, Any]:
        """What is on the disk."""
        return dict(json.loads(registry_file(self.home, "work-1").read_bytes()))


Play = Callable[[Bench], Coroutine[Any, Any, None]]


def script(play: Play) -> Callable[[Path], None]:
    def test(tmp_path: Path) -> None:
        async def main() -> None:
            home = Home(tmp_path)
            pin(home)
            bench = Bench(home)
            try:
                async with asyncio.timeout(20):
                    await play(bench)
            finally:
                bench.stop()

        asyncio.run(main())

    test.__doc__ = play.__doc__
    return test


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    monkeypatch.setattr(module, "RECONNECT_S", 0.01)


@script
async def test_nobody_is_believed_before_a_heartbeat_has_vouched_for_the_log(bench: Bench) -> None:
    host = Host()
    bench.log.append(registered(bench.journal, host))
    await asyncio.sleep(0.05)
    assert bench.registry.key_of(host.name) is None
    assert bench.registry.why == "control: the log has not been whole yet"
    bench.say()
    await bench.registry.ready()
    frame = host.frame(1)
    check = bench.registry.key_of(host.name)
    assert check is not None
    frame.verify(check)
    assert bench.registry.why == ""


@script
async def test_a_host_counts_from_its_entry_on_and_no_longer_than_to_its_removal(bench: Bench) -> None:
    bench.say()
    await bench.joined()
    host = Host()
    bench.log.append(registered(bench.journal, host))
    await until(lambda: bench.registry.key_of(host.name))
    assert list(bench.kept()["hosts"]) == [host.name]
    bench.log.append(bench.journal.remove(f"enforcer/{host.name}"))
    await until(lambda: bench.registry.key_of(host.name) is None)
    assert bench.kept()["hosts"] == {}, "on the disk before anything else is read"
    assert bench.registry.former_of(host.name) is not None


@script
async def test_a_host_with_another_key_counts_by_the_new_one(bench: Bench) -> None:
    old, new = Host(), Host()
    bench.say(registered(bench.journal, old))
    await bench.joined()
    bench.log.append(registered(bench.journal, new))
    await until(lambda: bench.follower.epoch == 2)
    check = bench.registry.key_of(new.name)
    assert check is not None
    new.frame(1).verify(check)


@script
async def test_an_entry_of_another_key_a_flipped_bit_and_an_old_one_change_nothing_and_are_counted(bench: Bench) -> None:
    host = Host()
    bench.say(registered(bench.journal, host))
    await bench.joined()
    forged = Entry(epoch=9, key=f"enforcer/{host.name}", time_ns=1, actor="uid:evil", value=None)
    good = forged.encode(bench.journal.signer.key_id, bench.journal.signer.sign)
    bench.log.append(
        forged.encode(STRANGER.key_id, STRANGER.sign), good[:-1] + bytes([good[-1] ^ 1]), None, bench.journal.wire(
            Entry(epoch=1, key="enforcer/late", time_ns=1, actor="uid:evil", value={"key": "00" * 32})
        ),
    )  # fmt: skip
    bench.say(bench.journal.put("pause", {"reason": "x"}))
    await until(lambda: bench.follower.counter == 2)
    assert bench.registry.key_of(host.name) is not None
    assert bench.follower.refused == {"key": 1, "form": 1, "order": 1}
    assert [entry.key for entry in bench.notes.entries] == ["pause"]


@script
async def test_a_log_that_lacks_an_entry_is_read_again_and_the_last_registry_counts_meanwhile(bench: Bench) -> None:
    first, second = Host("first"), Host("second")
    bench.say(registered(bench.journal, first))
    await bench.joined()
    lost = registered(bench.journal, second)
    bench.say()
    await until(lambda: not bench.registry.say()["synced"])
    assert bench.registry.say()["why"] == "heartbeat 2 names another state than the log has"
    assert bench.registry.key_of("first") is not None
    bench.say(lost)
    await bench.joined()
    assert bench.log.reads >= 2
    assert bench.registry.key_of("second") is not None


@script
async def test_the_last_registry_counts_while_control_is_away_and_what_was_removed_stays_removed(bench: Bench) -> None:
    kept, gone = Host("kept"), Host("gone")
    added = [registered(bench.journal, kept), registered(bench.journal, gone)]
    bench.say(*added)
    await bench.joined()
    before = list(bench.log.messages)
    bench.log.append(bench.journal.remove("enforcer/gone"))
    await until(lambda: bench.registry.key_of("gone") is None)
    bench.stop()
    # the broker is a new one, and somebody plays it what was signed before the removal
    bench.log = Log(*before)
    bench.start()
    await bench.registry.ready()
    await asyncio.sleep(0.1)
    assert bench.registry.key_of("kept") is not None
    assert bench.registry.key_of("gone") is None
    assert bench.registry.former_of("gone") is not None
    assert not bench.registry.say()["synced"]
    assert bench.registry.say()["epoch"] == 3
    bench.log.append(bench.journal.beat(epoch=2))
    await until(lambda: bench.follower.refused.get("epoch"))
    assert bench.registry.key_of("gone") is None


@script
async def test_a_consumer_that_brings_nothing_is_replaced_and_the_next_goes_on_where_it_was(bench: Bench) -> None:
    first, second = Host("first"), Host("second")
    bench.say(registered(bench.journal, first))
    await bench.joined()
    bench.stop()
    with patch.object(module, "SILENT_S", 0.05), patch.object(module, "POLL_MS", 10):
        await bench.registry._follow(bench.log, bench.follower)
    following = asyncio.create_task(bench.registry._follow(bench.log, bench.follower))
    assert bench.registry.say()["synced"]
    bench.log.append(registered(bench.journal, second))
    await until(lambda: bench.registry.key_of("second"))
    following.cancel()
    assert bench.log.reads == 1, "what was read stays read"


@script
async def test_behind_a_gap_nothing_counts_and_nobody_is_a_stranger_before_a_heartbeat_explains_it(bench: Bench) -> None:
    """A revocation and its end, compacted away, leave a gap; so does an entry that was lost."""
    host = Host()
    bench.say()
    await bench.joined()
    bench.journal.put("pause", {"reason": "x"})
    bench.journal.remove("pause")
    bench.log.append(registered(bench.journal, host))
    await until(lambda: bench.follower.epoch == 3)
    assert bench.registry.key_of(host.name) is None
    waiting = asyncio.create_task(bench.registry.caught_up())
    await asyncio.sleep(0.02)
    bench.say()
    assert await waiting
    assert bench.registry.key_of(host.name) is not None
    assert [epoch for whole, _ in bench.notes.wholes if whole for epoch in [whole.epoch]] == [0, 3]


@script
async def test_a_control_key_that_was_announced_is_believed_by_the_next_start_too(bench: Bench) -> None:
    bench.say(
        bench.journal.put(bench.journal.signer.entry_key, bench.journal.signer.entry_value),
        bench.journal.put(NEXT.entry_key, NEXT.entry_value),
    )
    await bench.joined()
    bench.journal.signer = NEXT
    host = Host()
    bench.say(registered(bench.journal, host))
    await until(lambda: bench.follower.counter == 2)
    await until(lambda: set(bench.kept()["control"]) >= {NEXT.key_id.hex()})
    bench.log = Log(*bench.journal.whole(), bench.journal.beat())
    bench.start()
    await bench.joined()
    assert bench.registry.key_of(host.name) is not None


@script
async def test_a_frame_of_an_unknown_host_waits_for_what_is_in_the_log_and_for_no_more(bench: Bench) -> None:
    host = Host()
    bench.say()
    await bench.joined()
    bench.log.hidden = 1
    bench.log.append(registered(bench.journal, host))
    waiting = asyncio.create_task(bench.registry.caught_up())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    bench.log.hidden = 0
    assert await waiting
    assert bench.registry.key_of(host.name) is not None
    assert await bench.registry.caught_up(), "nothing is behind it"


@script
async def test_what_is_in_the_log_and_does_not_come_is_not_waited_for_for_ever(bench: Bench) -> None:
    bench.say()
    await bench.joined()
    bench.log.hidden = 1
    bench.log.append(registered(bench.journal, Host()))
    assert not await bench.registry.caught_up()
    bench.log.away = True
    assert not await bench.registry.caught_up()


@script
async def test_while_the_log_is_not_whole_only_the_first_frame_of_an_unknown_host_waits(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    assert not await bench.registry.caught_up()
    began = loop.time()
    for _ in range(100):
        assert not await bench.registry.caught_up()
    assert loop.time() - began < 0.1
    bench.say()
    await bench.joined()
    assert await bench.registry.caught_up()


@script
async def test_the_scribe_is_told_what_is_live_and_what_else_was_in_the_log(bench: Bench) -> None:
    put, lift = bench.journal.put("revocation/agent:a", revocation("a")), bench.journal.remove("revocation/agent:a")
    bench.say(put, lift, bench.journal.put("revocation/agent:b", revocation("b")))
    await bench.joined()
    ((whole, past),) = bench.notes.wholes
    assert whole is not None
    assert [(entry.epoch, entry.key) for entry in whole.entries] == [(3, "revocation/agent:b")]
    assert [(entry.epoch, entry.value is None) for entry in past] == [(1, False), (2, True)]
    assert (whole.epoch, whole.keys) == (3, bench.journal.signer.pin)
    bench.log.append(bench.journal.put("revocation/agent:c", revocation("c")))
    await until(lambda: [entry.epoch for entry in bench.notes.entries] == [4])


@script
async def test_exceptions_and_revocations_are_those_that_are_live(bench: Bench) -> None:
    put = bench.journal.put
    assert bench.registry.excepted() is None, "nobody knows yet what is called false"
    bench.say(put("exception/a", {"detector": "leak", "subject": "x"}), put("revocation/agent:x", revocation("x")))
    await bench.joined()
    assert bench.registry.excepted() == frozenset({("leak", "x")})
    assert bench.registry.standing("agent:x") == (2, 0, "test")
    bench.log.append(put("exception/b", {"detector": "risk", "subject": "y"}), put("exception/a", None))
    await until(lambda: bench.registry.excepted() == frozenset({("risk", "y")}))
    bench.log.append(put("exception/b", {"detector": "risk", "subject": "z"}), put("revocation/agent:x", None))
    await until(lambda: bench.registry.standing("agent:x") is None)
    assert bench.registry.excepted() == frozenset({("risk", "z")})
    bench.start()
    assert bench.registry.excepted() == frozenset({("risk", "z")}), "before it has read a word"
    bench.say(put("exception/b", None))
    await bench.joined()
    assert bench.registry.excepted() == frozenset()


def test_a_worker_whose_home_has_no_control_key_waits_for_one(tmp_path: Path) -> None:
    async def main() -> None:
        registry = Registry(Home(tmp_path), Config(), slot="work-1", servers="nowhere:1")
        running = asyncio.create_task(registry.run())
        await until(lambda: "no control key is pinned" in registry.why)
        running.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"form": 2}', b'{"form": 1, "epoch": 1}', b"\xff"])
def test_a_registry_that_is_damaged_stops_the_start_and_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    path = registry_file(Home(tmp_path), "work-1")
    path.write_bytes(data)
    with pytest.raises(OperatorFault, match=r"registry.json: is no registry; remove it"):
        Registry(Home(tmp_path), Config(), slot="work-1", servers="nowhere:1")
