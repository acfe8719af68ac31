"""What a topic lacks: read it to its end and compare it with what is live.

Also where an empty journal begins on a topic that an earlier one wrote to (above it), and whether the topic says that our
journal is an old copy: an entry behind its end that carries our signature was made, published and lost.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.core.control import OWN, Log
from pipeline.shells.control.books import Books
from pipeline.shells.control.topic import reader, to_end
from schemas.control import HEAD_BYTES, HEARTBEAT, MAGIC, Entry, Sealed, leaf_of, parse_entry
from schemas.errors import FrameFault, OperatorFault
from schemas.limits import CHUNK_BYTES
from schemas.topics import Topics

log = logging.getLogger(__name__)

FORGET: Final = 10_000
"""Keys that nobody but the topic knows, and that are removed in one change."""


@dataclass(slots=True)
class _Topic:
    """The last word of the topic on each key."""

    last: dict[str, tuple[int, bool, bytes]] = field(default_factory=dict)
    """key -> (epoch, whether it is a removal that we have signed, leaf; empty for a removal), where it is not what is live."""
    same: dict[str, int] = field(default_factory=dict)
    """key -> epoch, where it is."""
    epoch: int = 0
    counter: int = 0
    bytes: int = 0
    ahead: str = ""
    """The key of the highest entry of ours that is behind the end of our journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What is to be sent."""

    epoch: int
    """The end of the journal when this was found."""
    missing: list[int]
    """Epochs of entries that the topic lacks, or has otherwise, in order."""
    removed: list[str]
    """Keys of which the topic still has a signed removal."""
    bundle: bool
    """Whether the chunks of the policy set in force are missing."""
    bytes: int


async def recover(books: Books, options: Mapping[str, Any], topics: Topics, *, embedded: bool) -> Recovery:
    """Read the topic and compare. Makes the first change of an empty journal.

    Raises OperatorFault when the topic goes beyond our journal, PeerFault or KafkaError while it cannot be read.
    """
    found = _Topic()
    keys = _accepted(books)
    limit = None if books.empty else books.opened
    # made since it was opened, and published by an attempt that seemed to fail
    made = {leaf_of(payload) for _, payload in await books.after(books.opened, books.log.epoch - books.opened)}
    async with reader(options, topics.control, wait_ms=20) as (consumer, place):
        async for message in to_end(consumer, place):
            if not _is_live(found, message, books.log):
                _read(found, message, keys, limit, made)
    if found.ahead:
        raise OperatorFault(
            f"control/journal.sqlite ends at epoch {books.log.epoch}, but topic `{topics.control}` has `{found.ahead}` of "
            f"epoch {found.epoch}, signed by this control: the journal is an old copy; restore the newest backup of the folder "
            "control, or remove that folder to begin anew without agents and revocations"
        )
    if limit is None:
        books.opened = found.epoch  # what is there up to here is of an earlier journal, also when this is tried again
    await books.begin(found.epoch, found.counter)
    await _forget(books, found)
    # changes are made meanwhile: what comes behind this epoch is sent as any change is
    end = books.log.epoch
    missing = [epoch for key, epoch in books.log.held() if found.same.get(key) != epoch]
    removed: list[str] = []
    for key, (epoch, ours, _) in found.last.items():
        if books.log.epoch_of(key):
            continue
        last = await books.last_epoch(key)
        if ours and epoch == last:
            removed.append(key)
        elif 0 < last <= end:  # the last word on it is lost: what stands there is older, or nobody's
            missing.append(last)
    bundle = await _bundle_is_missing(books, options, topics, embedded=embedded)
    if bundle and (now := books.log.policy) is not None and now.epoch <= end and now.epoch not in missing:
        missing.append(now.epoch)
    return Recovery(epoch=end, missing=sorted(missing), removed=removed, bundle=bundle, bytes=found.bytes)


def _accepted(books: Books) -> dict[bytes, Ed25519PublicKey]:
    """The keys whose signature is ours: those of the log, or of an empty one those in the folder."""
    ids = [entry.name for entry in books.log.entries("key")] or books.keys.made()
    return {bytes.fromhex(one): Ed25519PublicKey.from_public_bytes(bytes.fromhex(books.keys.public(one))) for one in ids}


def _is_live(found: _Topic, message: Any, log_: Log) -> bool:
    """Whether a message is an entry as it is live: then its bytes need no second look, and most are."""
    data, key = message.value, bytes(message.key or b"").decode(errors="replace")
    found.same.pop(key, None)
    if data is None or not data.startswith(MAGIC) or log_.payload(key) != data[HEAD_BYTES:]:
        return False
    found.bytes += len(data) + len(key)
    found.last.pop(key, None)
    found.same[key] = log_.epoch_of(key)
    return True


def _read(
    found: _Topic, message: Any, keys: Mapping[bytes, Ed25519PublicKey], limit: int | None, made: Collection[bytes]
) -> None:
    data, key = message.value, bytes(message.key or b"").decode(errors="replace")
    found.bytes += len(data or b"") + len(key)
    if data is None:
        # a removal is over with that; an entry that somebody buried is read by everybody until Kafka has compacted it away
        if key in found.last and not found.last[key][2]:
            del found.last[key]
        return
    try:
        sealed = parse_entry(data)
    except FrameFault:
        return
    entry = sealed.entry
    if entry.key == HEARTBEAT:
        counter = (entry.value or {}).get("counter")
        if type(counter) is int and counter > found.counter and _ours(sealed, keys):
            found.counter = counter
            _ahead(found, entry, None if limit is None else limit + len(made))
        return
    if key != entry.key:
        return  # under another key than its own it hides nothing of ours
    removal = entry.value is None
    beyond = entry.epoch > found.epoch and (limit is None or (entry.epoch > limit and sealed.leaf not in made))
    ours = (removal or beyond) and _ours(sealed, keys)
    found.last[key] = entry.epoch, removal and ours, b"" if removal else sealed.leaf
    if beyond and ours:
        _ahead(found, entry, limit)


def _ahead(found: _Topic, entry: Entry, limit: int | None) -> None:
    found.epoch = max(found.epoch, entry.epoch)
    if limit is not None and entry.epoch > limit:
        found.ahead = entry.key


def _ours(sealed: Sealed, keys: Mapping[bytes, Ed25519PublicKey]) -> bool:
    key = keys.get(sealed.key_id)
    if key is None:
        return False
    try:
        sealed.verify(key.verify)
    except FrameFault:
        return False
    return True


async def _forget(books: Books, found: _Topic) -> None:
    """Remove keys that the topic has and the journal never had: of an earlier journal, or of somebody else."""
    strange = [key for key, (_, _, leaf) in found.last.items() if leaf and not await books.last_epoch(key)]
    for at in range(0, len(strange), FORGET):
        part = strange[at : at + FORGET]
        log.warning("the topic has %d entries that this journal does not know, such as `%s`: they are removed", len(part),
                    part[0][:80])  # fmt: skip
        await books.change({"do": "forget", "keys": part}, actor=OWN)


async def _bundle_is_missing(books: Books, options: Mapping[str, Any], topics: Topics, *, embedded: bool) -> bool:
    """Whether the chunks of the set in force are not at the end of their topic, where its change has put them."""
    now = books.log.policy
    if now is None:
        return False
    wanted = {f"{now.digest}/{number}".encode() for number in range(int(now.value["chunks"]))}
    options = {**options, "max_partition_fetch_bytes": 4 * CHUNK_BYTES}
    async with reader(options, topics.bundles, wait_ms=20) as (consumer, place):
        end = (await consumer.end_offsets([place]))[place]
        begin = None if embedded else max(0, end - 2 * len(wanted) - 2)
        async for message in to_end(consumer, place, begin=begin):
            wanted.discard(bytes(message.key or b""))
    return bool(wanted)

