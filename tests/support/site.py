"""A home with a broker, a store and workers, and hosts made of plain code that feed them frames."""

import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterable

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from pipeline.shells.worker.registry import registry_file
from schemas.frame import Frame
from schemas.frontier import parse_frontier
from schemas.keys import Trust, own_key
from schemas.process import read_run_file
from tests.support.frames import HOST_BOOT, Host
from tests.support.home import Wardline, wait_until

CALLS, STORED, DEAD = "wardline.calls", "wardline.stored", "wardline.deadletter"


class Site:
    """Tests may share it: each begins with a host of its own, and sees the rows of that host alone."""

    def __init__(self, wardline: Wardline, *, workers: int = 1) -> None:
        self.wardline = wardline
        self.home = wardline.home
        self.host = Host()
        self.sent: list[str] = []
        self._numbers = itertools.count(1)
        wardline.start_all(workers=workers, enforcers=0)

    def begin(self) -> None:
        """Another test: a new host that is registered, and everything lives."""
        number = next(self._numbers)
        name = f"enforce-{number}"
        self.sent.clear()
        for process in ("store", "control", "work-1") if self.wardline.kafka else ("broker", "store", "control", "work-1"):
            if not (read_run_file(self.home.run_file(process)) or {}).get("alive"):
                self.wardline.start(process)
        self.host = self.register(Host(name, boot=HOST_BOOT + number, key=own_key(self.home, "hosts", name)))

    def register(self, host: Host) -> Host:
        """Wait until the first worker has heard of a host: a real one sends nothing before control has registered it."""
        path = registry_file(self.home, "work-1")
        wait_until(
            lambda: path.exists() and host.name in json.loads(path.read_bytes())["hosts"], 20,
            lambda: f"{host.name} is registered: {self.wardline.said('control')} {self.wardline.said('work-1')}",
        )  # fmt: skip
        return host

    def restart(self) -> None:
        """The worker's figures start at nothing."""
        self.wardline.stop("work-1")
        self.wardline.start("work-1")

    def worker(self, name: str = "work-1") -> "subprocess.Popen[bytes]":
        """The process that was started last under a name, whether it lives or not."""
        return self.wardline._started[name]

    def kill_worker(self, name: str = "work-1") -> None:
        """kill -9, ready or not."""
        self.worker(name).kill()
        self.worker(name).wait(20)

    def broker(self) -> str:
        """HOST:PORT."""
        if self.wardline.kafka:
            return self.wardline.kafka
        said = read_run_file(self.home.run_file("broker"))
        assert said is not None
        return str(said["address"])

    def send(self, messages: Iterable[tuple[int, Frame | bytes]]) -> None:
        """Send to partitions and wait until the broker has everything."""
        producer = Producer({"bootstrap.servers": self.broker(), "acks": "all", "message.max.bytes": 4 << 20})
        failed: list[object] = []
        for partition, data in messages:
            value = data.wire if isinstance(data, Frame) else data
            self.sent.append(hashlib.sha256(value).hexdigest())
            producer.produce(CALLS, value, partition=partition, on_delivery=lambda e, _: failed.append(e) if e else None)
            producer.poll(0)
        assert producer.flush(30) == 0
        assert not failed

    def read(self, topic: str) -> list[bytes]:
        """Everything on partition 0 of a topic now."""
        consumer = Consumer({"bootstrap.servers": self.broker(), "group.id": "test", "fetch.wait.max.ms": 20,
                             "enable.auto.commit": False})  # fmt: skip
        try:
            consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
            found: list[bytes] = []
            while len(found) < end and (message := consumer.poll(10)) is not None:
                found.append(message.value())
            return found
        finally:
            consumer.close()

    def frontiers(self) -> dict[str, int]:
        """The highest frontier of each lane, every signature checked."""
        best: dict[str, int] = {}
        for data in self.read(STORED):
            said = parse_frontier(data, Trust(self.home.trusted("workers")).verifier)
            best[said.lane.text] = max(said.frame_no, best.get(said.lane.text, 0))
        return best

    def wait_frontier(self, lane: str, frame_no: int, seconds: float = 30) -> None:
        """Wait until a worker says that a lane is stored so far."""
        wait_until(lambda: self.frontiers().get(lane, 0) >= frame_no, seconds,
                   lambda: f"{lane} at {frame_no}: {self.frontiers()} {self.wardline.said('work-1')}", every=0.2)  # fmt: skip

    def sql(self, query: str) -> list[tuple[object, ...]]:
        """TABLE is the records, MINE those of this test's host."""
        mine = f"enforcer = '{self.host.name}'"
        return self.wardline.sql(query.replace("TABLE", "wardline.records").replace("MINE", mine))

    def counts(self) -> tuple[object, ...]:
        """Records, different records, frame rows, different frames: in the table itself."""
        query = ("SELECT countIf(boot != 0), uniqExactIf((boot, seq), boot != 0), countIf(boot = 0),"
                 " uniqExactIf((enforcer, call_seq, partition, seq), boot = 0) FROM TABLE WHERE MINE")  # fmt: skip
        return self.sql(query)[0]

    def doubled(self) -> list[tuple[object, ...]]:
        """Frames that are in the table more than once: lane, number, when they were inserted, their offsets."""
        columns = "partition, seq, groupArray(toString(ingested)), groupArray(frame_offset), uniqExact(frame_digest)"
        return self.sql(f"SELECT {columns} FROM TABLE WHERE MINE AND boot = 0 GROUP BY partition, seq HAVING count() > 1")

    def letters(self) -> list[tuple[object, ...]]:
        """The dead letters among what this test has sent."""
        columns = "reason, partition, length(data), state"
        mine = ", ".join(f"'{digest}'" for digest in self.sent)
        where = f"lower(hex(digest)) IN ({mine})"
        return self.wardline.sql(f"SELECT {columns} FROM wardline.deadletters FINAL WHERE {where} ORDER BY reason, partition")

    def figures(self, name: str = "work-1") -> dict[str, object]:
        """What a worker says of itself."""
        said = read_run_file(self.home.run_file(name))
        assert said is not None
        return said
