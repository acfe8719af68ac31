"""What a topic lacks: what nobody has signed, or what somebody has buried, hides nothing that was lost.

The messages of the topic are given here; that a real one is read to its end, test_control_publish shows.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.shells.control import recover as module
from pipeline.shells.control.recover import Recovery, recover
from schemas.topics import Topics
from tests.support.entries import CONTROL, STRANGER, Journal, revocation

KEY = "revocation/agent:a"
Messages = list[tuple[str, bytes | None]]


def journal() -> Journal:
    """One whose revocation was made, lifted, made and lifted again: its last word is the removal of epoch 5."""
    made = Journal()
    made.put(CONTROL.entry_key, CONTROL.entry_value)
    for _ in range(2):
        made.put(KEY, revocation("a"))
        made.remove(KEY)
    return made


def found(made: Journal, topic: Messages, monkeypatch: pytest.MonkeyPatch) -> Recovery:
    """What is sent, where the topic has these messages behind the key."""
    live = made.live()
    whole = [(CONTROL.entry_key, made.wire(live[CONTROL.entry_key])), *topic]

    @contextlib.asynccontextmanager
    async def reader(*_: Any, **__: Any) -> AsyncIterator[tuple[None, None]]:
        yield None, None

    async def to_end(*_: Any) -> AsyncIterator[Any]:
        for key, data in whole:
            yield SimpleNamespace(key=key.encode(), value=data)

    async def nothing(*_: Any, **__: Any) -> Any:
        return []

    async def last_epoch(key: str) -> int:
        return max((entry.epoch for entry in made.log if entry.key == key), default=0)

    def payload(key: str) -> bytes | None:
        return live[key].payload() if key in live else None

    log = SimpleNamespace(
        epoch=made.epoch, policy=None, payload=payload, epoch_of=lambda key: live[key].epoch if key in live else 0,
        entries=lambda _: [SimpleNamespace(name=CONTROL.key_id.hex())], held=lambda: [(k, e.epoch) for k, e in live.items()],
    )  # fmt: skip
    books: Any = SimpleNamespace(
        log=log, empty=False, opened=made.epoch, after=nothing, begin=nothing, change=nothing, last_epoch=last_epoch,
        keys=SimpleNamespace(public=lambda _: CONTROL.public.hex()),
    )  # fmt: skip
    monkeypatch.setattr(module, "reader", reader)
    monkeypatch.setattr(module, "to_end", to_end)
    return asyncio.run(recover(books, {}, Topics(), embedded=True))


def test_a_topic_that_has_the_last_removal_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal()
    recovery = found(made, [(KEY, made.wire(made.log[4]))], monkeypatch)
    assert (recovery.missing, recovery.removed) == ([], [KEY])


def test_a_removal_that_is_over_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal()
    recovery = found(made, [(KEY, made.wire(made.log[4])), (KEY, None)], monkeypatch)
    assert (recovery.missing, recovery.removed) == ([], [])


def hidden_by(what: str, made: Journal) -> Messages:
    entry, removal = made.log[3], made.log[4]
    flipped = bytearray(made.wire(removal))
    flipped[20] ^= 1  # in its signature
    return {
        "an older removal": [(KEY, made.wire(made.log[2]))],
        "a removal that a stranger has signed": [(KEY, made.wire(entry)), (KEY, made.wire(removal, STRANGER))],
        "a removal whose signature is not ours": [(KEY, made.wire(entry)), (KEY, bytes(flipped))],
        "a tombstone on an entry": [(KEY, made.wire(entry)), (KEY, None)],
    }[what]


@pytest.mark.parametrize("what", [
    "an older removal", "a removal that a stranger has signed", "a removal whose signature is not ours",
    "a tombstone on an entry",
])  # fmt: skip
def test_what_is_lost_behind_it_is_sent_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = journal()
    recovery = found(made, hidden_by(what, made), monkeypatch)
    assert (recovery.missing, recovery.removed) == ([made.epoch], [])
