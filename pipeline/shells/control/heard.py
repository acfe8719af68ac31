"""Hears the acknowledgements: the last word of each host, by its registered key, and who has not applied an epoch yet."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from prometheus_client import Counter

from pipeline.shells.control.books import Books
from pipeline.shells.control.topic import reader, to_end
from schemas.ack import Ack, parse_ack
from schemas.config import Config
from schemas.control import Verify
from schemas.errors import FrameFault, PeerFault
from schemas.home import Home
from schemas.links import broker_now, embedded_broker, kafka_security
from schemas.topics import Topics

log = logging.getLogger(__name__)

EXPECTED_S: Final = 60.0
"""A host that was heard so lately is expected to apply what is new."""

PAST_S: Final = 600.0
"""How far back a start of control listens on Apache Kafka; the store has what is older."""

RECONNECT_S: Final = 0.3
LOOK_S: Final = 0.5

ACKS = Counter("wardline_control_acks", "Acknowledgements heard", ["verdict"])


@dataclass(slots=True)
class Said:
    """The last word of a host."""

    ack: Ack
    seen: float
    """Monotonic seconds."""
    since: Mapping[str, tuple[str, int]]
    """Door (empty: the host itself) -> the policies it decides by, and when it did so first of what was heard here."""


class Heard:
    """Follows the topic `acks` for ever."""

    def __init__(self, home: Home, config: Config, books: Books, lacking: Callable[[str], object]) -> None:
        """`lacking` is called with a line when a host says that what it has read is not all that is live."""
        self._home = home
        self._config = config
        self._books = books
        self._lacking = lacking
        self._embedded = embedded_broker(config)
        self._topic = Topics(config.kafka.prefix).acks
        self._keys: dict[str, tuple[str, Verify]] = {}
        self._moved = asyncio.Event()
        self.hosts: dict[str, Said] = {}

    def _key_of(self, host: str) -> Verify | None:
        entry = self._books.log.get(f"enforcer/{host}")
        if entry is None or entry.value is None:
            return None
        public = str(entry.value["key"])
        known = self._keys.get(host)
        if known is None or known[0] != public:
            known = self._keys[host] = public, Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify
        return known[1]

    def take(self, data: bytes | None, *, ago_s: float = 0.0) -> None:
        """One message of the topic, said `ago_s` seconds ago."""
        if data is None:
            return
        try:
            ack = parse_ack(data, self._key_of)
        except FrameFault as fault:
            ACKS.labels(fault.reason).inc()
            log.debug("an acknowledgement is refused: %s", fault)
            return
        known = self.hosts.get(ack.host)
        if known is not None and ack.boot == known.ack.boot and ack.said_ns < known.ack.said_ns:
            ACKS.labels("old").inc()
            return
        ACKS.labels("good").inc()
        before = known.since if known is not None and known.ack.boot == ack.boot else {}
        since = {"": (ack.policy_digest, ack.applied_ns)}
        since |= {door.boot: (door.policy_digest, door.applied_ns) for door in ack.doors}
        since |= {name: held for name, held in before.items() if name in since and held[0] == since[name][0]}
        self.hosts[ack.host] = Said(ack, time.monotonic() - max(0.0, ago_s), since)
        self._moved.set()
        self._moved = asyncio.Event()
        if ack.state in ("stale", "joining") and "digest" in ack.why and ago_s < 1.0:
            self._lacking(f"host {ack.host} is {ack.state} ({ack.why[:100]})")

    async def run(self) -> None:
        """Listen for ever; returns only by cancellation."""
        while True:
            try:
                servers, identity = broker_now(self._home, self._config)
                options = {"bootstrap_servers": servers, "client_id": "wardline-control-acks", **kafka_security(self._config)}
                async with reader(options, self._topic, wait_ms=20 if self._embedded else 500) as (consumer, place):
                    async for message in to_end(consumer, place, begin=await self._begin(consumer, place)):
                        self.take(message.value, ago_s=time.time() - message.timestamp / 1000)
                    while broker_now(self._home, self._config)[1] == identity:
                        for messages in (await consumer.getmany(place, timeout_ms=int(LOOK_S * 1000))).values():
                            for message in messages:
                                self.take(message.value)
            except (TimeoutError, KafkaError, OSError, PeerFault) as fault:
                log.debug("acknowledgements: %s", fault)
            await asyncio.sleep(RECONNECT_S)

    async def _begin(self, consumer: Any, place: Any) -> int | None:
        """Where to begin: the embedded broker keeps little, Apache Kafka is asked for what is not older than PAST_S."""
        if self._embedded:
            return None
        found = (await consumer.offsets_for_times({place: int((time.time() - PAST_S) * 1000)}))[place]
        return int(found.offset) if found is not None else int((await consumer.end_offsets([place]))[place])

    # -- who has applied what ----------------------------------------------------------------------------------------

    def report(self, epoch: int = 0, policy: str = "") -> list[dict[str, Any]]:
        """Every registered host, and whether it and its doors have applied an epoch and decide by a policy set."""
        hosts = []
        now = time.monotonic()
        for entry in self._books.log.entries("enforcer"):
            said = self.hosts.get(entry.name)
            if said is None:
                hosts.append({"host": entry.name, "expected": False, "seen_s": None, "applied": False, "doors": []})
                continue
            ack, seen_s = said.ack, now - said.seen
            doors = [
                {**asdict(door), "applied": _has(door.epoch, door.policy_digest, epoch, policy),
                 "policy_since_ns": said.since[door.boot][1]}
                for door in ack.doors
            ]  # fmt: skip
            own = _has(ack.epoch, ack.policy_digest, epoch, policy)
            hosts.append({
                "host": ack.host, "boot": ack.boot, "state": ack.state, "why": ack.why, "seen_s": round(seen_s, 3),
                "epoch": ack.epoch, "counter": ack.counter, "policy_digest": ack.policy_digest, "applied_ns": ack.applied_ns,
                "policy_since_ns": said.since[""][1], "lag_records": ack.lag_records, "doors": doors,
                "expected": ack.state != "stopped" and seen_s <= EXPECTED_S,
                "applied": all(door["applied"] for door in doors) if doors else own,
            })  # fmt: skip
        return hosts

    async def applied(self, epoch: int, policy: str, wait_s: float) -> list[dict[str, Any]]:
        """The report once every expected host has applied an epoch, or after `wait_s` as it is then."""
        deadline = time.monotonic() + wait_s
        while True:
            moved = self._moved
            hosts = self.report(epoch, policy)
            left = deadline - time.monotonic()
            if left <= 0 or all(host["applied"] for host in hosts if host["expected"]):
                return hosts
            try:
                await asyncio.wait_for(moved.wait(), min(left, 1.0))
            except TimeoutError:
                continue

    def figures(self) -> Mapping[str, int]:
        """How many hosts are registered, and how many of them are expected to apply what is new."""
        hosts = self.report()
        return {"registered": len(hosts), "expected": sum(host["expected"] for host in hosts)}


def _has(epoch: int, digest: str, wanted: int, policy: str) -> bool:
    return epoch >= wanted and (not policy or digest == policy)
