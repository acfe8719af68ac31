"""Control made of plain code: a journal without a disk, real entries on a real topic, and every lie that a test needs.

    with Control(home) as control:           # pins its key in the home
        control.enrol("enforce-1")
        control.beat()                       # and again every `every` seconds while `beating`
        control.put("revocation/agent:a", revocation("a"))
        control.send(forged)                 # any bytes

It speaks Kafka through another library than the host, so that neither's mistakes are the other's.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import pyarrow
from confluent_kafka import Producer

from schemas.bundle import Bundle
from schemas.chunks import Chunk, split_bundle
from schemas.control import HEARTBEAT, Entry
from schemas.home import Home
from schemas.keys import own_key, public_pem, raw_public
from schemas.process import private_dir, read_run_file, write_atomic
from schemas.topics import Topics
from tests.support.entries import CONTROL, Journal, Signer, digest_of


class Control:
    """Says what control would. `journal` is what it believes; what is sent is the test's affair."""

    def __init__(self, home: Home, *, kafka: str = "", every: float = 0.2, signer: Signer = CONTROL) -> None:
        self.home = home
        self.journal = Journal(signer=signer)
        self.every = every
        self.beating = True
        self._kafka = kafka
        self._topics = Topics()
        self._digest: dict[str, Any] = {}
        self._digested = -1
        self._producer: Producer | None = None
        self._address = ""
        self._guard = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        folder = private_dir(home.trusted("control"))
        write_atomic(folder / f"{signer.key_id.hex()}.pub", public_pem(signer.public))

    def __enter__(self) -> "Control":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

    # -- what control would do ---------------------------------------------------------------------------------------

    def put(self, key: str, value: Mapping[str, Any] | None) -> int:
        """Make a change and publish it; returns its epoch."""
        with self._guard:
            self.send(self.journal.put(key, value))
            return self.journal.epoch

    def remove(self, key: str) -> int:
        """A key is live no more."""
        return self.put(key, None)

    def enrol(self, *names: str) -> None:
        """Register hosts and workers of this home under their own keys, which are made where they are missing."""
        for name in names:
            worker = name.startswith("work-")
            key = own_key(self.home, "workers" if worker else "hosts", name)
            self.put(f"{'worker' if worker else 'enforcer'}/{name}", {"key": raw_public(key.public_key()).hex()})

    def policy(self, bundle: Bundle, *, chunks: bool = True) -> str:
        """Put policies in force; without `chunks`, nobody can find them. Returns their digest."""
        said, parts = packed(bundle)
        if chunks:
            for chunk in parts:
                self.send(chunk.encode(), topic="bundles", key=chunk.key)
        self.put("policy/main", said)
        return str(said["digest"])

    def beat(self, **more: Any) -> None:
        """Publish a heartbeat, or one that says something else."""
        with self._guard:
            journal = self.journal
            if more:
                data = journal.beat(**more)
            else:
                if self._digested != journal.epoch:  # of a large journal it takes seconds
                    live = journal.live().values()
                    self._digest = {"digest": digest_of(entry.payload() for entry in live).hex(), "live": len(live)}
                    self._digested = journal.epoch
                journal.counter += 1
                said = {"counter": journal.counter, **self._digest}
                beat = Entry(epoch=journal.epoch, key=HEARTBEAT, time_ns=time.time_ns(), actor="control", value=said)
                data = journal.wire(beat)
            self.send(data, key=b"heartbeat")

    def whole(self) -> None:
        """Publish everything that is live, and a heartbeat."""
        with self._guard:
            for data in self.journal.whole():
                self.send(data, flush=False)
            self.beat()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """No heartbeat meanwhile."""
        with self._guard:
            self.beating = False
        try:
            yield
        finally:
            self.beating = True

    def _beat_on(self) -> None:
        while not self._stop.wait(self.every):
            with self._guard:
                if self.beating:
                    self.beat()

    # -- the wire ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes | None, *, topic: str = "control", key: bytes = b"any", flush: bool = True) -> None:
        """Any bytes, to the end of a topic; returns when the broker has them."""
        with self._guard:
            producer = self._connected()
            failed: list[object] = []
            while True:
                try:
                    producer.produce(getattr(self._topics, topic), data, key=key, partition=0,
                                     on_delivery=lambda error, _: failed.append(error) if error else None)  # fmt: skip
                    break
                except BufferError:
                    producer.poll(0.1)
            if flush:
                assert producer.flush(20) == 0
                assert not failed, failed

    def _connected(self) -> Producer:
        address = self._kafka or str((read_run_file(self.home.run_file("broker")) or {}).get("address", ""))
        if self._producer is None or address != self._address:
            self._address = address
            self._producer = Producer({"bootstrap.servers": address, "acks": "all", "linger.ms": 0, "log_level": 0,
                                       "message.timeout.ms": 15_000})  # fmt: skip
        return self._producer


def packed(bundle: Bundle) -> tuple[dict[str, Any], list[Chunk]]:
    """What `policy/main` says of a bundle, and its chunks."""
    data = bundle.encode()
    small = pyarrow.Codec("zstd").compress(data, asbytes=True)
    parts = split_bundle(bundle.digest, small)
    said = {"digest": bundle.digest, "bytes": len(data), "packed": len(small), "chunks": len(parts),
            "policies": len(bundle.rules), "origin": "files"}  # fmt: skip
    return said, parts
