"""An entry of the control log: who wrote what, in one order, under the control key.

    0 magic `WLC1`   4 key id [8]   12 Ed25519 signature over magic and payload [64]   76 payload, canonical JSON, UTF-8

The payload has `tenant`, `epoch` (the journal's position), `key`, `time` (ns since 1970), `actor`, and `value`: an object, or
null where the key is removed. Equal meaning, equal bytes: keys sorted, no spaces. The signature is not part of an entry's
identity, so that a new control key may sign the same entry again.

    policy/main          digest (SHA-256 of the bundle), bytes, packed (bytes of its zstd form), chunks, policies,
                         origin (files, rollback)
    agent/NAME           owner, secret (scrypt), subs [[issuer, subject]], spiffe [id]
    revocation/SELECTOR  kind, name, cascade, reason, not_before, expires (seconds since 1970, 0: none)
    exception/ID         finding, detector, subject, owner, reason, expires (seconds since 1970): such findings are false
    enforcer/NAME        key (the raw Ed25519 public key, hex)          worker/NAME the same
    pause                reason
    key/KEYID            public (hex): a control key that is accepted; its entry is signed with one that was accepted before
    heartbeat            counter, digest (of all live entries), live (their number); itself not live
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature

from schemas.canonical import canonical
from schemas.errors import FrameFault
from schemas.limits import ENTRY_BYTES_MAX, ENTRY_KEY_BYTES_MAX
from schemas.vocabulary import shown

MAGIC: Final = b"WLC1"
KEY_ID_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
HEAD_BYTES: Final = len(MAGIC) + KEY_ID_BYTES + SIGNATURE_BYTES
TENANT: Final = "default"

HEARTBEAT: Final = "heartbeat"
PAUSE: Final = "pause"
POLICY: Final = "policy/main"
KINDS: Final = ("policy", "agent", "revocation", "exception", "enforcer", "worker", "pause", "key", HEARTBEAT)
"""What stands before the `/` of a key."""
_WORDS: Final = (PAUSE, HEARTBEAT)
"""Keys that are one word; every other has a name."""

_FIELDS: Final = {"tenant", "epoch", "key", "time", "actor", "value"}
EPOCH_MAX: Final = (1 << 63) - 1

Verify = Callable[[bytes, bytes], None]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. `value` is None where the key is removed."""

    epoch: int
    key: str
    time_ns: int
    actor: str
    value: Mapping[str, Any] | None
    tenant: str = TENANT

    @property
    def kind(self) -> str:
        """`revocation` of `revocation/agent:x`."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """`agent:x` of `revocation/agent:x`; empty where a key is one word."""
        return self.key.partition("/")[2]

    @property
    def registered(self) -> bytes:
        """The raw public key that an entry of a host or worker registers; empty when it has none that can be used."""
        try:
            public = bytes.fromhex((self.value or {})["key"])
        except (KeyError, TypeError, ValueError):
            return b""
        return public if len(public) == 32 else b""

    def payload(self) -> bytes:
        """The canonical bytes: what is signed, and what the digest of the live entries is over."""
        value = {
            "tenant": self.tenant, "epoch": self.epoch, "key": self.key, "time": self.time_ns, "actor": self.actor,
            "value": self.value,
        }  # fmt: skip
        return canonical(value)

    def encode(self, key_id: bytes, sign: Sign) -> bytes:
        """The Kafka message."""
        return seal(self.payload(), key_id, sign)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A message whose form is right and whose signature nobody has checked yet."""

    key_id: bytes
    signature: bytes
    payload: bytes
    entry: Entry

    def verify(self, check: Verify) -> None:
        """Raises FrameFault `signature`."""
        try:
            check(self.signature, MAGIC + self.payload)
        except InvalidSignature as fault:
            name = shown(self.entry.key)
            raise FrameFault("signature", f"entry `{name}` is not signed by key {self.key_id.hex()}") from fault

    @property
    def leaf(self) -> bytes:
        """What the entry is in the digest of all live entries."""
        return leaf_of(self.payload)


def exception_name(detector: str, subject: str) -> str:
    """What the exception for findings of a detector about a subject is called, 32 hex digits: there is one of each."""
    return hashlib.sha256(canonical({"detector": detector, "subject": subject})).hexdigest()[:32]


def seal(payload: bytes, key_id: bytes, sign: Sign) -> bytes:
    """Put a signed head before canonical bytes."""
    return MAGIC + key_id + sign(MAGIC + payload) + payload


def leaf_of(payload: bytes) -> bytes:
    """SHA-256 of an entry's canonical bytes."""
    return hashlib.sha256(payload).digest()


def key_id_of(public: bytes) -> bytes:
    """What an Ed25519 public key (32 raw bytes) is called: the first 8 bytes of its SHA-256."""
    return hashlib.sha256(public).digest()[:KEY_ID_BYTES]


def parse_entry(data: bytes) -> Sealed:
    """Read a message of the control topic. Raises FrameFault `form`, `limit` or `tenant`; the signature is not looked at."""
    if len(data) <= HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes are no control entry")
    if len(data) > ENTRY_BYTES_MAX:
        raise FrameFault("limit", f"a control entry has {len(data)} bytes, limit is {ENTRY_BYTES_MAX}")
    payload = data[HEAD_BYTES:]
    try:
        said = json.loads(payload)
        if not isinstance(said, dict) or said.keys() != _FIELDS:
            raise ValueError("fields")
        entry = Entry(epoch=said["epoch"], key=said["key"], time_ns=said["time"], actor=said["actor"], value=said["value"],
                      tenant=said["tenant"])  # fmt: skip
        numbers = (entry.epoch, entry.time_ns)
        whole = all(type(number) is int and 0 <= number <= EPOCH_MAX for number in numbers)
        texts = isinstance(entry.key, str) and isinstance(entry.actor, str) and isinstance(entry.tenant, str)
        if not whole or not texts or not (entry.value is None or isinstance(entry.value, dict)):
            raise ValueError("types")
        if entry.payload() != payload:
            raise ValueError("not canonical")
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise FrameFault("form", f"a control entry of {len(data)} bytes is not in canonical form") from fault
    named = entry.key in _WORDS or (entry.kind in KINDS and entry.kind not in _WORDS and entry.name)
    if not named or len(entry.key.encode()) > ENTRY_KEY_BYTES_MAX:
        raise FrameFault("form", f"a control entry has the key `{shown(entry.key)}`")
    if entry.tenant != TENANT:
        raise FrameFault("tenant", f"a control entry is for tenant `{shown(entry.tenant)}`, this program has `{TENANT}` alone")
    head = len(MAGIC)
    return Sealed(key_id=data[head : head + KEY_ID_BYTES], signature=data[head + KEY_ID_BYTES : HEAD_BYTES], payload=payload,
                  entry=entry)  # fmt: skip


BUCKETS: Final = 4096
_NOTHING: Final = hashlib.sha256(b"").digest()


class LiveDigest:
    """The digest of a set of leaves, kept up to date as it changes: 32 bytes of memory for each leaf.

    SHA-256 over the SHA-256 of each of BUCKETS buckets; a bucket is its leaves in order, and a leaf's first 12 bits say which
    is its own. So a change costs one bucket, and equal sets have equal digests in whatever order they were made.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(BUCKETS)]
        self._hashes = [_NOTHING] * BUCKETS
        self._dirty: set[int] = set()
        self._digest = b""
        self.leaves = 0

    def add(self, leaf: bytes) -> None:
        """Put a leaf in that is not there."""
        number = _bucket(leaf)
        self._buckets[number] += leaf
        self._dirty.add(number)
        self.leaves += 1

    def remove(self, leaf: bytes) -> None:
        """Take a leaf out. Raises KeyError when it is not there."""
        number = _bucket(leaf)
        bucket = self._buckets[number]
        at = bucket.find(leaf)
        while at % len(leaf):  # -1 ends this too, below
            at = bucket.find(leaf, at + 1) if at >= 0 else -len(leaf)
        if at < 0:
            raise KeyError(leaf.hex())
        del bucket[at : at + len(leaf)]
        self._dirty.add(number)
        self.leaves -= 1

    def digest(self) -> bytes:
        """32 bytes."""
        if self._dirty or not self._digest:
            for number in self._dirty:
                bucket = self._buckets[number]
                leaves = sorted(bytes(bucket[at : at + 32]) for at in range(0, len(bucket), 32))
                self._hashes[number] = hashlib.sha256(b"".join(leaves)).digest()
            self._dirty.clear()
            self._digest = hashlib.sha256(b"".join(self._hashes)).digest()
        return self._digest


def _bucket(leaf: bytes) -> int:
    return int.from_bytes(leaf[:2], "big") >> 4
