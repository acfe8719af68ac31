"""StrictConsumer, event by event: what may be committed, what crashes, what an assignment and a revoke do."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from pipeline.shells.worker.app import WorkerApp, make_app
from pipeline.shells.worker.consumer import OffsetGap, StrictConsumer
from schemas.config import Config, Kafka
from schemas.home import Home

CALLS = TP("wardline.calls", 0)
OTHER = TP("wardline.calls", 1)


class Pump:
    """Remembers what it is asked; a drain acknowledges what the script says."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.on_drain: Callable[[], None] = lambda: None

    async def take(self, event: Any) -> None:
        self.log.append(("take", event))

    async def drain(self) -> None:
        self.log.append("drain")
        self.on_drain()

    def open(self, assigned: set[TP]) -> None:
        self.log.append(("open", sorted(assigned)))


class Bench:
    """A real StrictConsumer of a real app whose client is the script."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pump = Pump()
        config = Config(kafka=Kafka(servers="127.0.0.1:1"))
        self.app: WorkerApp = make_app(Home(tmp_path), config, slot="work-1", servers="127.0.0.1:1", pump=self.pump)

        async def nothing(*_: Any, **__: Any) -> None:
            pass

        monkeypatch.setattr(self.app.topics, "on_message", nothing)  # before the consumer takes hold of it
        self.consumer: StrictConsumer = self.app.consumer
        self.delivered: list[int] = []
        self.commits: list[dict[TP, int]] = []
        self.crashes: list[BaseException] = []
        self.committed: dict[TP, int | None] = {CALLS: None}
        self.earliest: dict[TP, int] = {CALLS: 0}
        self.acked: list[Any] = []
        self.sought: list[dict[TP, int]] = []

        async def crash(fault: BaseException) -> None:
            self.crashes.append(fault)

        async def commit(offsets: dict[TP, int]) -> bool:
            self.commits.append(dict(offsets))
            return True

        async def seek_to_committed() -> dict[TP, int | None]:
            return self.committed

        async def earliest_offsets(*tps: TP) -> dict[TP, int]:
            return {tp: self.earliest[tp] for tp in tps}

        async def seek_wait(offsets: dict[TP, int]) -> None:
            self.sought.append(offsets)

        for name, value in (
            ("_commit", commit), ("seek_to_committed", seek_to_committed), ("earliest_offsets", earliest_offsets),
            ("assignment", lambda: set(self.committed)), ("_on_partitions_revoked", nothing),
            ("_on_partitions_assigned", nothing), ("seek_wait", seek_wait), ("highwater", lambda tp: 100), ("_seek", nothing),
        ):  # fmt: skip
            monkeypatch.setattr(self.consumer, name, value)
        monkeypatch.setattr(self.app, "crash", crash)
        monkeypatch.setattr(self.app.topics, "acks_enabled_for", lambda _: True)

    async def deliver(self, *offsets: int, tp: TP = CALLS) -> list[Any]:
        made = []
        for offset in offsets:
            message = SimpleNamespace(tp=tp, topic=tp.topic, partition=tp.partition, offset=offset, acked=False)
            before = len(self.consumer._window[tp])
            await self.consumer.callback(message)
            if len(self.consumer._window[tp]) > before:
                self.delivered.append(offset)
            made.append(message)
        return made

    def ack(self, *messages: Any) -> None:
        for message in messages:
            self.consumer.ack(_Unhashed(message))

    async def commit(self) -> dict[TP, int]:
        before = len(self.commits)
        await self.consumer.commit()
        return self.commits[-1] if len(self.commits) > before else {}


class _Unhashed:
    """A message as Faust acknowledges it: it goes into a WeakSet, so it needs an identity."""

    def __init__(self, message: Any) -> None:
        self.__dict__.update(vars(message))


def leave(app: WorkerApp) -> None:
    """Faust makes a loop for the consumer's thread, which is never started here."""
    app.consumer._thread.thread_loop.close()


def script(play: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            bench = Bench(tmp_path, monkeypatch)
            try:
                await bench.consumer.perform_seek()
                await play(bench)
            finally:
                leave(bench.app)

        asyncio.run(main())

    test.__doc__ = play.__doc__
    return test


@script
async def test_only_the_head_run_of_acknowledged_messages_is_committed(bench: Bench) -> None:
    a, b, c, d = await bench.deliver(0, 1, 2, 3)
    bench.ack(b, d)
    assert await bench.commit() == {}, "the first is not acknowledged: Faust's own consumer would step over it"
    bench.ack(a)
    assert await bench.commit() == {CALLS: 2}
    bench.ack(c)
    assert await bench.commit() == {CALLS: 4}
    assert await bench.commit() == {}


@script
async def test_a_message_that_nobody_delivered_crashes_the_worker_and_is_not_stepped_over(bench: Bench) -> None:
    a, *_ = await bench.deliver(0, 2)
    assert [type(fault) for fault in bench.crashes] == [OffsetGap]
    assert bench.delivered == [0]
    bench.ack(a)
    assert await bench.commit() == {CALLS: 1}


@script
async def test_the_first_message_of_an_assignment_must_be_the_committed_one(bench: Bench) -> None:
    bench.committed[CALLS] = 52
    await bench.consumer.perform_seek()
    await bench.deliver(63)
    assert [str(fault) for fault in bench.crashes] == ["wardline.calls/0: offset 63 follows 51"]
    await bench.deliver(52)
    assert bench.delivered == [52]


@script
async def test_with_no_commit_delivery_begins_at_the_earliest_offset(bench: Bench) -> None:
    bench.earliest[CALLS] = 7
    await bench.consumer.perform_seek()
    (a,) = await bench.deliver(7)
    bench.ack(a)
    assert await bench.commit() == {CALLS: 8}
    assert not bench.crashes


@script
async def test_a_partition_without_a_commit_is_read_from_its_start_again(bench: Bench) -> None:
    """Faust leaves it where it was, and what it had fetched would never come again."""
    bench.committed[OTHER] = 5
    bench.earliest[OTHER] = 0
    await bench.deliver(0, 1)
    bench.sought.clear()
    await bench.consumer.perform_seek()
    assert bench.sought == [{CALLS: 0}]
    await bench.deliver(0, 1)
    assert bench.delivered == [0, 1, 0, 1]


@script
async def test_the_reader_seeks_when_the_flow_goes_on_and_not_before(bench: Bench) -> None:
    """A fetch that it threw away while the flow was stopped may be of the new assignment: its messages must come again."""
    await bench.deliver(0, 1)
    bench.consumer.stop_flow()
    bench.sought.clear()
    reading = asyncio.create_task(bench.consumer.perform_seek())
    bench.consumer._reader = reading
    await asyncio.sleep(0.01)
    assert bench.sought == []
    await bench.consumer.perform_seek()
    assert bench.sought == [{CALLS: 0}], "the assignment's own seek does not wait for the reader"
    bench.consumer.resume_flow()
    await reading
    assert bench.sought == [{CALLS: 0}] * 2
    await bench.deliver(0, 1)
    assert bench.delivered == [0, 1, 0, 1]


@script
async def test_a_fetch_older_than_the_seek_is_dropped_without_a_word(bench: Bench) -> None:
    await bench.deliver(0, 1, 0, 1, 2)
    assert (bench.delivered, bench.crashes) == ([0, 1, 2], [])


@script
async def test_a_revoke_drains_then_commits_what_the_drain_acknowledged_then_forgets(bench: Bench) -> None:
    a, b = await bench.deliver(0, 1)
    bench.pump.on_drain = lambda: bench.ack(a, b)
    await bench.consumer.on_partitions_revoked({CALLS})
    assert bench.pump.log == ["drain"]
    assert bench.commits == [{CALLS: 2}]
    assert CALLS not in bench.consumer._window


@script
async def test_after_a_new_assignment_old_acknowledgements_commit_nothing(bench: Bench) -> None:
    a, b = await bench.deliver(0, 1)
    await bench.consumer.on_partitions_revoked({CALLS})
    bench.committed[CALLS] = 1
    await bench.consumer.perform_seek()
    bench.ack(a)
    assert await bench.commit() == {}
    (b,) = await bench.deliver(1)
    bench.ack(b)
    assert await bench.commit() == {CALLS: 2}


@script
async def test_the_pump_is_open_before_the_app_hears_of_an_assignment(bench: Bench) -> None:
    async def heard(*_: Any) -> None:
        bench.pump.log.append("app")

    bench.consumer._on_partitions_assigned = heard
    bench.app.on_rebalance_start()
    await bench.consumer.on_partitions_assigned({CALLS}, 3)
    assert bench.pump.log == [("open", [CALLS]), "app"]


@script
async def test_partitions_keep_apart(bench: Bench) -> None:
    bench.committed[OTHER] = 5
    bench.earliest[OTHER] = 0
    await bench.consumer.perform_seek()
    (a,) = await bench.deliver(0)
    (b,) = await bench.deliver(5, tp=OTHER)
    bench.ack(b)
    assert await bench.commit() == {OTHER: 6}
    bench.ack(a)
    assert await bench.commit() == {CALLS: 1}


@script
async def test_a_seek_starts_its_partition_anew(bench: Bench) -> None:
    (a,) = await bench.deliver(0)
    await bench.consumer.seek(CALLS, 40)
    await bench.deliver(40)
    bench.ack(a)
    assert await bench.commit() == {}
    assert bench.delivered == [0, 40]


@script
async def test_how_far_behind_it_is_counts_what_is_not_committed(bench: Bench) -> None:
    assert bench.consumer.behind() == 100
    (a,) = await bench.deliver(0)
    bench.ack(a)
    await bench.commit()
    assert (bench.consumer.committed(), bench.consumer.behind()) == ({CALLS: 1}, 99)


def test_messages_lost_to_retention_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    async def main() -> None:
        bench = Bench(tmp_path, monkeypatch)
        bench.committed[CALLS], bench.earliest[CALLS] = 50, 80
        await bench.consumer.perform_seek()
        await bench.deliver(80)
        assert (bench.delivered, bench.crashes) == ([80], [])
        leave(bench.app)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "wardline.calls/0: offsets 50 to 79 are gone" in caplog.text


def test_the_settings_that_were_measured_are_the_ones_in_force(tmp_path: Path) -> None:
    async def main() -> None:
        pump = Pump()
        app = make_app(Home(tmp_path), Config(kafka=Kafka(servers="h1:1,h2:2")), slot="work-3", servers="h1:1,h2:2", pump=pump)
        conf = app.conf
        assert conf.id == "wardline.worker"
        assert [str(url) for url in conf.broker] == ["kafka://h1:1", "kafka://h2:2"]
        assert conf.broker_max_poll_interval == 86_400
        assert conf.consumer_group_instance_id == "work-3"
        assert conf.processing_guarantee.value == "at_least_once"
        assert (conf.stream_wait_empty, conf.web_enabled, conf.topic_allow_declare) == (False, False, False)
        assert conf.consumer_auto_offset_reset == "earliest"
        assert conf.broker_request_timeout >= conf.broker_session_timeout
        assert type(app.consumer) is StrictConsumer
        leave(app)
        embedded = make_app(Home(tmp_path), Config(), slot="work-1", servers="h:1", pump=pump)
        again = make_app(Home(tmp_path), Config(), slot="work-1", servers="h:1", pump=pump)
        assert embedded.conf.id != again.conf.id, "the embedded broker would wait for the dead member of the group"
        assert embedded.conf.consumer_group_instance_id is None

    asyncio.run(main())


def test_a_password_is_in_no_text_of_the_app(tmp_path: Path) -> None:
    async def main() -> None:
        secret = tmp_path / "password"
        secret.write_text("planted-secret\n")
        secret.chmod(0o600)
        kafka = Kafka(servers="h:1", security_protocol="SASL_PLAINTEXT", sasl_username="w", sasl_password_file=str(secret))
        app = make_app(Home(tmp_path), Config(kafka=kafka), slot="work-1", servers="h:1", pump=Pump())
        credentials = app.conf.broker_credentials
        assert (credentials.username, credentials.password) == ("w", "planted-secret")
        texts = (repr(app), repr(credentials), str(app.conf.broker), app.label, repr(app.conf), str(app.transport.url))
        assert not [text for text in texts if "planted-secret" in text]

    asyncio.run(main())
