"""What control has said becomes rows: each entry once, in order, whatever dies in between, and nothing that nobody signed."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pipeline.shells.worker import scribe as module
from pipeline.shells.worker.scribe import Scribe, Whole, entry_row
from pipeline.shells.worker.sink import StoreAway, StoreRefuses
from schemas.control import Entry
from tests.support.entries import CONTROL, STRANGER, Journal, revocation
from tests.support.registry import until


class Rows:
    """The store's table `control`, and what it does wrong: `faults` are raised by its next calls."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int, str], Mapping[str, Any]] = {}
        self.inserts: list[list[int]] = []
        self.faults: list[Exception] = []
        self.late = False
        """Whether what is raised is raised after the rows were stored."""

    def _fault(self) -> None:
        if self.faults:
            raise self.faults.pop(0)

    def control_known(self, first: Entry | None) -> tuple[int, int]:
        self._fault()
        journal = max((key[0] for key in self.rows), default=0)
        if journal == 0:
            return 1, 0
        known = max(key[1] for key in self.rows if key[0] == journal)
        if first is not None and first.epoch <= known and (journal, first.epoch, first.key) not in self.rows:
            return journal + 1, 0
        return journal, known

    def keep_entries(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.late:
            self._fault()
        self.inserts.append([row["epoch"] for row in rows])
        self.rows |= {(row["journal"], row["epoch"], row["key"]): row for row in rows}
        if self.late:
            self._fault()

    def _live(self, journal: int, epoch: int) -> list[str]:
        last: dict[str, Mapping[str, Any]] = {}
        for _, row in sorted(self.rows.items()):
            if row["journal"] == journal:
                last[row["key"]] = row
        return [key for key, row in last.items() if row["value"] and row["epoch"] <= epoch]

    def control_count(self, journal: int, epoch: int) -> int:
        self._fault()
        return len(self._live(journal, epoch))

    def control_keys(self, journal: int, epoch: int) -> list[str]:
        self._fault()
        return self._live(journal, epoch)

    def epochs(self) -> list[int]:
        return sorted(epoch for _, epoch, _ in self.rows)


class Bench:
    def __init__(self) -> None:
        self.rows = Rows()
        self.journal = Journal()
        self.synced = True
        self.start()

    def start(self) -> None:
        self.scribe = Scribe(self.rows, whole=self.whole)
        self.task = asyncio.create_task(self.scribe.run())

    def restart(self, *past: tuple[Entry, bytes]) -> None:
        """kill -9; the next start reads the log."""
        self.task.cancel()
        self.start()
        self.scribe.catch_up(past)

    def whole(self) -> Whole | None:
        live = sorted(self.journal.live().values(), key=lambda entry: entry.epoch)
        return Whole(entries=live, epoch=self.journal.epoch, time_ns=7_000, keys=CONTROL.pin) if self.synced else None

    def put(self, key: str, value: Mapping[str, Any] | None) -> tuple[Entry, bytes]:
        data = self.journal.put(key, value)
        return self.journal.log[-1], data

    async def written(self, epoch: int) -> None:
        await until(lambda: self.scribe.written == epoch)


def play(story: Callable[[Bench], Any]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            async with asyncio.timeout(20):
                await story(bench)
        finally:
            bench.task.cancel()
            bench.scribe._thread.shutdown()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.005)
    monkeypatch.setattr(module, "RETRY_MAX_S", 0.01)


def test_each_entry_is_written_once_whatever_was_written_before() -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            bench.put(f"revocation/agent:{name}", revocation(name))
        bench.scribe.catch_up([])
        await bench.written(3)
        assert await bench.scribe.journal() == 1
        entry, _ = bench.put("pause", {"reason": "x"})
        bench.scribe.add(entry)
        await bench.written(4)
        bench.put("revocation/agent:d", revocation("d"))
        bench.restart()
        await bench.written(5)
        assert bench.rows.inserts == [[1, 2, 3], [4], [5]]

    play(story)


@pytest.mark.parametrize("late", [False, True])
def test_a_store_that_is_away_or_refuses_gets_the_same_rows_again(late: bool) -> None:
    async def story(bench: Bench) -> None:
        bench.rows.late = late
        bench.put("pause", {"reason": "x"})
        bench.rows.faults += [StoreAway("away"), StoreRefuses("too many parts"), StoreAway("away")]
        bench.scribe.catch_up([])
        await until(lambda: bench.scribe.waits_for)
        await bench.written(1)
        assert bench.rows.epochs() == [1]
        assert bench.scribe.waits_for == ""

    play(story)


def test_what_came_and_went_before_the_start_is_written_when_its_signature_holds() -> None:
    async def story(bench: Bench) -> None:
        put = bench.put("revocation/agent:a", revocation("a"))
        lift = bench.put("revocation/agent:a", None)
        forged = Entry(epoch=3, key="revocation/agent:evil", time_ns=1, actor="uid:evil", value=None)
        bench.put("pause", {"reason": "x"})
        bench.put("pause", None)
        bench.restart(put, lift, (forged, forged.encode(STRANGER.key_id, STRANGER.sign)),
                      (forged, forged.encode(CONTROL.key_id, STRANGER.sign)))  # fmt: skip
        await bench.written(4)
        assert bench.rows.epochs() == [1, 2]

    play(story)


def test_what_is_gone_though_nobody_saw_it_go_is_written_as_gone_by_then() -> None:
    """The embedded broker forgets: control publishes what is live, and a lifted revocation would stay live in the store."""

    async def story(bench: Bench) -> None:
        bench.put("revocation/agent:a", revocation("a"))
        bench.put("revocation/agent:b", revocation("b"))
        bench.scribe.catch_up([])
        await bench.written(2)
        bench.put("revocation/agent:a", None)
        bench.restart()
        await bench.written(3)
        row = bench.rows.rows[1, 3, "revocation/agent:a"]
        assert (row["value"], row["actor"], row["time"]) == ("", "", 7)
        before = len(bench.rows.inserts)
        bench.restart()
        await bench.written(3)
        assert len(bench.rows.inserts) == before, "once"

    play(story)


def test_a_journal_that_began_anew_is_another_one() -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            bench.put(f"revocation/agent:{name}", revocation(name))
        bench.scribe.catch_up([])
        await bench.written(3)
        bench.journal = Journal()
        bench.put("pause", {"reason": "x"})
        bench.restart()
        await bench.written(1)
        assert await bench.scribe.journal() == 2
        assert [key for key in bench.rows.rows if key[0] == 2] == [(2, 1, "pause")]

    play(story)


def test_entries_that_the_store_cannot_take_in_time_are_taken_from_what_is_live_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 10)

    async def story(bench: Bench) -> None:
        bench.scribe.catch_up([])
        await bench.written(0)
        bench.rows.faults += [StoreAway("away")] * 40
        for n in range(30):
            entry, _ = bench.put(f"revocation/agent:{n}", revocation(str(n)))
            bench.scribe.add(entry)
            await asyncio.sleep(0.001)
        await until(lambda: bench.rows.epochs() == list(range(1, 31)))
        flat = [epoch for insert in bench.rows.inserts for epoch in insert]
        assert sorted(set(flat)) == flat, "in order, and none twice"

    play(story)


def test_while_the_log_is_not_whole_entries_wait_and_nothing_spins() -> None:
    async def story(bench: Bench) -> None:
        bench.synced = False
        bench.scribe.catch_up([])
        entry, _ = bench.put("pause", {"reason": "x"})
        bench.scribe.add(entry)
        await asyncio.sleep(0.05)
        assert bench.rows.inserts == []
        bench.synced = True
        bench.scribe.catch_up([])
        await bench.written(1)

    play(story)


def test_no_secret_is_written_hash_though_it_is() -> None:
    value = {"owner": "o", "secret": "scrypt$planted", "subs": []}
    entry = Entry(epoch=1, key="agent/a", time_ns=5_000, actor="uid:op", value=value)
    row = entry_row(entry, 3)
    assert json.loads(row["value"]) == {"owner": "o", "subs": []}
    assert "planted" not in str(row)
    assert (row["journal"], row["kind"], row["name"], row["time"]) == (3, "agent", "a", 5)
