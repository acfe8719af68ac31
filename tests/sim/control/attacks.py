"""Somebody who can write to the topics but has no key of ours: forged, old, cut and foreign messages, and tombstones."""

from schemas.control import EPOCH_MAX, HEARTBEAT, Entry
from tests.sim.control.control import arrive
from tests.sim.control.rules import Truth
from tests.sim.control.topic import Broker
from tests.sim.story import Story
from tests.support.entries import STRANGER, Signer

KINDS = ("old", "old", "forged", "forged heartbeat", "forged removal", "flipped", "tombstone", "key", "forged ack")
KEYS = ("agent/a", "revocation/agent:a", "revocation/agent:nobody", "pause", "policy/main", "enforcer/enforce-1")


def attack(story: Story, truth: Truth, broker: Broker, control: list[Signer]) -> None:
    """Write one bad message, made from what stands or has stood in the log."""
    if not broker.up or not broker.past:
        return
    what = story.pick(KINDS)
    story.fault(f"attack: {what}")
    old = story.pick(broker.past)
    assert old.value is not None
    match what:
        case "old":
            arrive(broker, truth, story, broker.identity, old.key, old.value)
        case "forged" | "forged removal":
            value = None if what == "forged removal" else {"n": 1}
            epoch = story.pick((1, truth.epoch + 1, EPOCH_MAX, EPOCH_MAX))
            _forge(story, broker, Entry(epoch=epoch, key=story.pick(KEYS), time_ns=0, actor="evil", value=value), control)
        case "forged heartbeat":
            value = {"counter": 1 << 50, "digest": "00" * 32, "live": 0}
            _forge(story, broker, Entry(epoch=truth.epoch, key=HEARTBEAT, time_ns=0, actor="evil", value=value), control)
        case "key":
            _forge(story, broker, Entry(epoch=truth.epoch + 1, key=STRANGER.entry_key, time_ns=0, actor="evil",
                                        value=STRANGER.entry_value), control)  # fmt: skip
        case "flipped":
            bit = story.random.randrange(8 * len(old.value))
            changed = bytearray(old.value)
            changed[bit // 8] ^= 1 << bit % 8
            broker.write(broker.identity, old.key, bytes(changed))
            broker.past.pop()
        case "tombstone":
            recent = [message.key for message in broker.control.messages[-8:] if message.key != HEARTBEAT.encode()]
            broker.write(broker.identity, story.pick(recent) if recent else old.key, None)
            if not broker.embedded:
                broker.compact()
        case "forged ack" if broker.acks.messages:
            data = story.pick(broker.acks.messages).value or b""
            broker.acks.append(b"enforce-1", data[:4] + STRANGER.sign(data[:4] + data[68:]) + data[68:], None)


def _forge(story: Story, broker: Broker, entry: Entry, control: list[Signer]) -> None:
    """Under the id of a key that control has or has had, or under his own."""
    key_id = story.pick([*(key.key_id for key in control), STRANGER.key_id])
    broker.write(broker.identity, entry.key.encode(), entry.encode(key_id, STRANGER.sign))
    broker.past.pop()

