"""A journal for tests that has no disk: what control would have signed, and what is live by the slowest way to know it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.ack import Ack, DoorAck
from schemas.control import BUCKETS, HEARTBEAT, Entry, key_id_of, leaf_of

NOW_NS = 1_700_000_000_000_000_000


class Signer:
    """One Ed25519 key, made from a word."""

    def __init__(self, word: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(word.encode()).digest())
        self.public = self._key.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public)
        self.sign = self._key.sign
        self.verify = self._key.public_key().verify

    @property
    def pin(self) -> dict[bytes, bytes]:
        """What a follower is given that trusts this key."""
        return {self.key_id: self.public}

    @property
    def entry_key(self) -> str:
        """Under which control announces it."""
        return f"key/{self.key_id.hex()}"

    @property
    def entry_value(self) -> dict[str, Any]:
        """What it announces."""
        return {"public": self.public.hex()}


CONTROL = Signer("control")
NEXT = Signer("the next control key")
STRANGER = Signer("a stranger")


def digest_of(payloads: Iterable[bytes]) -> bytes:
    """What `LiveDigest` says of these entries, from its description and nothing kept between two calls."""
    buckets: dict[int, list[bytes]] = {}
    for leaf in map(leaf_of, payloads):
        buckets.setdefault(int(leaf.hex()[:3], 16), []).append(leaf)
    nothing = hashlib.sha256(b"").digest()
    hashes = [nothing] * BUCKETS
    for number, leaves in buckets.items():
        hashes[number] = hashlib.sha256(b"".join(sorted(leaves))).digest()
    return hashlib.sha256(b"".join(hashes)).digest()


@dataclass
class Journal:
    """Entries in the order of their epochs, and the number of heartbeats that were made."""

    signer: Signer = CONTROL
    log: list[Entry] = field(default_factory=list)
    counter: int = 0

    def put(self, key: str, value: Mapping[str, Any] | None) -> bytes:
        """Make one change; returns its message."""
        entry = Entry(epoch=self.epoch + 1, key=key, time_ns=NOW_NS + self.epoch, actor="uid:tester", value=value)
        self.log.append(entry)
        return self.wire(entry)

    def remove(self, key: str) -> bytes:
        """A key is live no more."""
        return self.put(key, None)

    @property
    def epoch(self) -> int:
        """Of the last entry."""
        return len(self.log)

    def live(self, epoch: int | None = None) -> dict[str, Entry]:
        """What is live at an epoch, by going through all that was ever written."""
        found: dict[str, Entry] = {}
        for entry in self.log[:epoch]:
            found[entry.key] = entry
        return {key: entry for key, entry in found.items() if entry.value is not None}

    def whole(self) -> list[bytes]:
        """Everything that is live, in the order of the epochs."""
        return [self.wire(entry) for entry in sorted(self.live().values(), key=lambda entry: entry.epoch)]

    def removals(self) -> list[bytes]:
        """The last word on everything that is live no more."""
        last = {entry.key: entry for entry in self.log}
        return [self.wire(entry) for entry in last.values() if entry.value is None]

    def wire(self, entry: Entry, signer: Signer | None = None) -> bytes:
        """An entry as a message."""
        by = signer or self.signer
        return entry.encode(by.key_id, by.sign)

    def beat(self, *, signer: Signer | None = None, counter: int | None = None, **more: Any) -> bytes:
        """The next heartbeat, or one that says something else."""
        if counter is None:
            self.counter += 1
            counter = self.counter
        live = self.live()
        said = {"counter": counter, "digest": digest_of(e.payload() for e in live.values()).hex(), "live": len(live), **more}
        epoch = said.pop("epoch", self.epoch)
        return self.wire(Entry(epoch=epoch, key=HEARTBEAT, time_ns=NOW_NS, actor="control", value=said), signer)


def revocation(name: str, **more: Any) -> dict[str, Any]:
    """The value of `revocation/agent:NAME`."""
    return {"kind": "agent", "name": name, "cascade": False, "reason": "test", "not_before": 0, "expires": 0, **more}


def make_ack(**more: Any) -> Ack:
    """An acknowledgement of a host with two doors."""
    door = DoorAck(boot="00000001000000aa", epoch=7, policy_digest="ab" * 32, applied_ns=NOW_NS)
    fields: dict[str, Any] = {
        "host": "enforce-1", "boot": "00000001000000bb", "state": "ready", "why": "", "epoch": 7, "counter": 3,
        "policy_digest": "ab" * 32, "applied_ns": NOW_NS, "said_ns": NOW_NS, "lag_records": 0,
        "doors": (door, DoorAck(boot="00000001000000ab", epoch=6, policy_digest="", applied_ns=0)),
    }  # fmt: skip
    return Ack(**(fields | more))


def damaged(data: bytes, seed: Callable[[int], int]) -> bytes:
    """One change to a message: a bit, a byte less or more, a piece moved, or the end cut off. `seed(n)` gives 0 .. n - 1."""
    at = seed(len(data)) if data else 0
    match seed(6):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << seed(8))]) + data[at + 1 :] if data else b"\0"
        case 1:
            return data[:at] + data[at + 1 :]
        case 2:
            return data[:at] + bytes([seed(256)]) + data[at:]
        case 3:
            return data[:at]
        case 4:
            return data[at:] + data[:at]
        case _:
            to = seed(len(data) + 1)
            return data[:at] + data[min(at, to) : max(at, to)] + data[at:]
