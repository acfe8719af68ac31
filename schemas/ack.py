"""An acknowledgement: an enforcer host's signed word on what it and each of its doors have applied, and when.

    0 magic `WLA1`   4 Ed25519 signature of the host's key over magic and payload [64]   68 payload, canonical JSON, UTF-8

A host says it on every change and at least every second, so its silence says something too.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from schemas.canonical import canonical
from schemas.control import EPOCH_MAX, TENANT, Verify
from schemas.errors import FrameFault
from schemas.limits import ACK_BYTES_MAX, DOORS_MAX
from schemas.vocabulary import shown

MAGIC: Final = b"WLA1"
HEAD_BYTES: Final = len(MAGIC) + 64
STATES: Final = ("joining", "ready", "stale", "stopped")
"""`joining`: not yet fresh since its start; `stopped`: ended as it should, nothing more comes from this boot."""

_BOOT: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"(?:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorAck:
    """One living door of the host."""

    boot: str
    """16 hex digits."""
    epoch: int
    """Every decision that it records from now on obeys all entries up to here, revocations and pause."""
    policy_digest: str
    """The policies that it decides by."""
    applied_ns: int
    """When it began to, nanoseconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What a host says of itself at one moment."""

    host: str
    boot: str
    state: str
    why: str
    """Why it is not ready, in one line; empty when it is."""
    epoch: int
    """What the host itself has applied: it acknowledges for itself when it has no door."""
    counter: int
    """The last heartbeat that it accepted."""
    policy_digest: str
    applied_ns: int
    said_ns: int
    lag_records: int
    """Records in its spools and outbox that are not known to be stored."""
    doors: tuple[DoorAck, ...] = ()
    tenant: str = TENANT

    def encode(self, sign: Callable[[bytes], bytes]) -> bytes:
        """The Kafka message, signed by the host's frame key; its key is the host's name."""
        payload = canonical(asdict(self))
        return MAGIC + sign(MAGIC + payload) + payload


def parse_ack(data: bytes, key_of: Callable[[str], Verify | None]) -> Ack:
    """Read and verify one. Raises FrameFault `form`, `limit`, `tenant`, `key` or `signature`."""
    if len(data) <= HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
        raise FrameFault("form", f"these {len(data)} bytes are no acknowledgement")
    if len(data) > ACK_BYTES_MAX:
        raise FrameFault("limit", f"an acknowledgement has {len(data)} bytes, limit is {ACK_BYTES_MAX}")
    try:
        said: dict[str, Any] = json.loads(data[HEAD_BYTES:])
        doors = tuple(_made(DoorAck, door) for door in said.pop("doors"))
        ack: Ack = _made(Ack, {**said, "doors": doors})
        if ack.state not in STATES or len(doors) > DOORS_MAX:
            raise ValueError("state or doors")
        if not all(_BOOT.fullmatch(said.boot) and _DIGEST.fullmatch(said.policy_digest) for said in (ack, *doors)):
            raise ValueError("boot or digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise FrameFault("form", f"an acknowledgement of {len(data)} bytes cannot be read") from fault
    if ack.tenant != TENANT:
        raise FrameFault("tenant", f"an acknowledgement is for tenant `{shown(ack.tenant)}`, this program has `{TENANT}` alone")
    check = key_of(ack.host)
    if check is None:
        raise FrameFault("key", f"no key is registered for host `{shown(ack.host)}`")
    try:
        check(data[len(MAGIC) : HEAD_BYTES], MAGIC + data[HEAD_BYTES:])
    except Exception as fault:
        raise FrameFault("signature", f"an acknowledgement is not signed by host `{shown(ack.host)}`") from fault
    return ack


def _made(kind: type[Any], said: dict[str, Any]) -> Any:
    wanted = {field.name: field.type for field in fields(kind)}
    if said.keys() != wanted.keys():
        raise ValueError("fields")
    for name, value in said.items():
        if wanted[name] in (str, int) and type(value) is not wanted[name]:
            raise ValueError(name)
        if isinstance(value, int) and not 0 <= value <= EPOCH_MAX:
            raise ValueError(name)
        if isinstance(value, str):
            value.encode()  # a lone surrogate is no text: whoever stores it would fail on it
    return kind(**said)
