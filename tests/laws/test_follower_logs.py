"""Whole logs against the journal itself: a stranger writes into them what he likes, and nobody believes what never was."""

import random
from collections import Counter

import pytest

from schemas.control import EPOCH_MAX, Entry, parse_entry
from schemas.errors import FrameFault
from schemas.follower import Beat, Follower
from tests.laws.test_follower import Took, take
from tests.support.entries import CONTROL, STRANGER, Journal

KEYS = ("agent/x", "agent/y", "revocation/agent:x", "revocation/agent:y", "pause", "policy/main")


class Topic:
    """A log that control writes in order, and where a stranger without a key does what he likes. Everything by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.journal = Journal()
        self.messages: list[bytes | None] = []
        self.did: Counter[str] = Counter()

    def control(self) -> None:
        """One change, or two of one transaction."""
        for _ in range(self.random.choice((1, 1, 2))):
            key, number = self.random.choice(KEYS), self.random.randrange(9)
            live = key in self.journal.live()
            self.messages.append(self.journal.put(key, None if live and number < 4 else {"n": number}))

    def beat(self) -> None:
        self.messages.append(self.journal.beat())

    def republish(self) -> None:
        """What heals any log: what is live, and the end of what is not, since its beginning may have been put there again."""
        self.messages += self.journal.whole() + self.journal.removals()
        self.did["republished"] += 1

    def compact(self) -> None:
        """The newest message of each key stays, a tombstone with no key of its own goes."""
        newest = {parse_entry(data).entry.key: at for at, data in enumerate(self.messages) if data and well_formed(data)}
        self.messages = [data for at, data in enumerate(self.messages) if at in newest.values()]
        self.did["compacted"] += 1

    def stranger(self) -> None:
        """Anything that needs no key."""
        what = self.random.choice(("replayed", "forged", "removed by force", "flipped", "tombstone", "cut", "lost"))
        at = self.random.randrange(len(self.messages) + 1)
        if not self.messages and what in ("replayed", "flipped", "cut", "lost"):
            return
        pick = self.random.choice([data for data in self.messages if data] or [b"x"])
        self.did[what] += 1
        match what:
            case "replayed":
                self.messages.insert(at, pick)
            case "forged" | "removed by force":
                value = None if what == "removed by force" else {"n": 666}
                entry = Entry(epoch=self.random.choice((1, self.journal.epoch, self.journal.epoch + 1, EPOCH_MAX)),
                              key=self.random.choice(KEYS), time_ns=0, actor="evil", value=value)  # fmt: skip
                signer = self.random.choice((CONTROL, STRANGER))
                self.messages.insert(at, entry.encode(signer.key_id, STRANGER.sign))
            case "flipped":
                bit = self.random.randrange(len(pick) * 8)
                changed = bytearray(pick)
                changed[bit // 8] ^= 1 << bit % 8
                self.messages.insert(at, bytes(changed))
            case "tombstone":
                self.messages.insert(at, None)
            case "cut":
                self.messages.insert(at, pick[: self.random.randrange(len(pick))])
            case "lost":
                del self.messages[min(at, len(self.messages) - 1)]


def well_formed(data: bytes) -> bool:
    try:
        return bool(parse_entry(data))
    except FrameFault:
        return False


class Reader:
    """A follower on a topic: it goes on where it was, or begins again, or starts anew with its floors."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.follower = Follower(CONTROL.pin)
        self.at = 0
        self.floors = (0, 0)

    def step(self) -> None:
        chance = self.topic.random.random()
        if chance < 0.05:
            self.follower = Follower(CONTROL.pin, epoch=self.floors[0], counter=self.floors[1])
            self.at = 0
            self.topic.did["restarted"] += 1
        elif chance < 0.1 or self.at > len(self.topic.messages):
            self.begin()
        self.read(self.topic.random.randrange(12))

    def begin(self) -> None:
        self.follower.begin()
        self.at = 0

    def read(self, count: int) -> None:
        for _ in range(min(count, len(self.topic.messages) - self.at)):
            data = self.topic.messages[self.at]
            self.at += 1
            took = take(self.follower, data, at_end=self.at == len(self.topic.messages))
            self.check(took)
            if isinstance(took, Beat) and not took.whole:
                self.topic.did["not whole"] += 1
                self.begin()
                return

    def check(self, took: Took) -> None:
        journal, follower = self.topic.journal, self.follower
        if isinstance(took, str):
            self.topic.did[f"refused: {took}"] += 1
        if isinstance(took, Entry) and follower.synced:
            assert took == journal.log[took.epoch - 1], "believed what control never said"
        if isinstance(took, Beat) and took.whole:
            self.topic.did["whole"] += 1
            assert {entry.key: entry for entry in follower.entries()} == journal.live(took.epoch)
            assert (took.epoch, took.counter) >= self.floors
            assert took.counter > self.floors[1]
            assert follower.epoch == took.epoch <= journal.epoch
            self.floors = (took.epoch, took.counter)


def history(seed: int) -> Topic:
    topic = Topic(seed)
    readers = [Reader(topic) for _ in range(2)]
    for _ in range(80):
        match topic.random.choices(("control", "beat", "stranger", "compact", "republish", "read"), (6, 5, 3, 0.4, 0.6, 14))[0]:
            case "control":
                topic.control()
            case "beat":
                topic.beat()
            case "stranger":
                topic.stranger()
            case "compact":
                topic.compact()
            case "republish":
                topic.republish()
            case _:
                topic.random.choice(readers).step()
    # quiet: control publishes again what it knows, and its heart beats; the stranger's rubbish stays in the log
    for _ in range(4):
        topic.republish()
        topic.beat()
        for reader in readers:
            if reader.follower.synced:
                reader.at = min(reader.at, len(topic.messages))
            else:
                reader.begin()
            reader.read(len(topic.messages))
    for reader in readers:
        assert reader.follower.synced, f"{seed=}: {reader.follower.refused}"
        assert {entry.key: entry for entry in reader.follower.entries()} == topic.journal.live()
    return topic


@pytest.mark.parametrize("block", range(6))
def test_a_whole_log_is_believed_as_the_journal_was_and_nothing_else_is(block: int) -> None:
    for seed in range(block * 50, (block + 1) * 50):
        history(seed)


def test_the_histories_reach_every_corner() -> None:
    did: Counter[str] = Counter()
    for seed in range(100):
        did += history(seed).did
    expected = {
        "replayed", "forged", "removed by force", "flipped", "tombstone", "cut", "lost", "compacted", "republished",
        "restarted", "whole", "not whole", "refused: form", "refused: key", "refused: signature", "refused: epoch",
        "refused: order", "refused: counter",
    }  # fmt: skip
    assert expected - did.keys() == set()
