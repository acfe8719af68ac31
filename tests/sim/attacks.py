"""Somebody who can write to the topics but has no key of ours: forged, replayed, re-partitioned and cut messages."""

import hashlib
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import FrameFault
from schemas.frame import Frame, build_frame, parse_frame
from schemas.frontier import Frontier
from tests.sim.kafka import Broker
from tests.sim.story import Story

STRANGER = Ed25519PrivateKey.from_private_bytes(b"somebody else's key, not pinned.")


def attack(story: Story, broker: Broker, slots: list[str]) -> None:
    """Write one bad message to `calls` or `stored`, made from what lies there."""
    if not broker.up:
        return
    filled = [(partition, log) for partition, log in enumerate(broker.calls) if log.messages]
    if not filled:
        return
    partition, log = story.pick(filled)
    data = story.pick(log.messages)
    try:
        seen = parse_frame(data)
    except FrameFault:
        return  # our own rubbish
    what = story.pick(("forged frame", "frame replayed", "frame in another partition", "frame cut short", "forged frontier"))
    story.fault(f"attack: {what}", f"{seen.head.lane.text} frame {seen.head.frame_no}")
    match what:
        case "forged frame":
            broker.produce(broker.identity, partition, _forged(story, seen).wire)
        case "frame replayed":
            broker.produce(broker.identity, partition, data)
        case "frame in another partition":
            broker.produce(broker.identity, (partition + 1) % len(broker.calls), data)
        case "frame cut short":
            broker.produce(broker.identity, partition, data[: story.random.randrange(len(data))])
        case "forged frontier":
            ahead = seen.head.frame_no + story.random.randrange(3)
            forged = Frontier(lane=seen.head.lane, frame_no=ahead, stored_ns=0, worker=story.pick([*slots, "stranger"]))
            broker.stored.append((seen.head.lane.text.encode(), forged.encode(STRANGER.sign)))


def _forged(story: Story, seen: Frame) -> Frame:
    """A frame under a number that is used now or soon, with a stranger's signature or another payload under the real one."""
    if story.chance(0.3):
        return replace(seen, payload=seen.payload[:-1] + bytes([seen.payload[-1] ^ 1]))
    payload = story.random.randbytes(40)
    head = replace(
        seen.head, frame_no=seen.head.frame_no + story.random.randrange(4), payload_digest=hashlib.sha256(payload).digest()
    )
    return build_frame(head, payload, STRANGER.sign)
