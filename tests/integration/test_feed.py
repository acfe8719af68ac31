"""What a host does with lies and gaps in control's log: refused, counted, the old state kept, stale where nothing is proved."""

import time
from collections.abc import Callable, Iterator

import pytest

from schemas.records import Standing
from tests.support.control import Control
from tests.support.entries import STRANGER, Journal, revocation
from tests.support.fed import STALE_S, Fed
from tests.support.home import wait_until

FRESH_S = 1.5
CONFIG = f"[control]\nheartbeat_ms = 200\nstale_ms = {int(FRESH_S * 1000)}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    with Fed(tmp_path_factory.mktemp("fed") / "home", config=CONFIG) as fed:
        yield fed


@pytest.fixture
def fed(shared: Fed) -> Fed:
    """Fresh, with one agent revoked."""
    shared.control.put("revocation/agent:known", revocation("known"))
    shared.wait_standing(Standing.REVOKED, "agent:known")
    return shared


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def forged(control: Control) -> bytes:
    return Journal(signer=STRANGER, log=list(control.journal.log)).put("revocation/agent:forged", revocation("forged"))


def lifted(control: Control) -> bytes:
    """The removal of what is revoked, with one bit of its signature changed."""
    return flipped(Journal(log=list(control.journal.log)).remove("revocation/agent:known"), 20)


def older(control: Control) -> bytes:
    """What the agent's revocation was before it was made again: genuine, and over."""
    journal = control.journal
    first = next(entry for entry in journal.log if entry.key == "revocation/agent:known")
    assert first.epoch < journal.live()["revocation/agent:known"].epoch
    return journal.wire(first)


REFUSED: dict[str, tuple[Callable[[Control], bytes], str]] = {
    "an entry of a foreign key": (forged, "key"),
    "a heartbeat of a foreign key": (lambda c: c.journal.beat(signer=STRANGER), "key"),
    "an entry with a flipped bit in its signature": (lifted, "signature"),
    "an entry with a flipped bit in its text": (lambda c: flipped(c.journal.wire(c.journal.log[-1]), -3), "form"),
    "an older entry": (older, "epoch"),
    "a heartbeat with a counter that was heard": (lambda c: c.journal.beat(counter=c.journal.counter), "counter"),
    "a heartbeat of an older epoch": (lambda c: c.journal.beat(epoch=1), "epoch"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_means_counted_and_the_old_state_kept_and_nothing_proved(fed: Fed, what: str) -> None:
    make, reason = REFUSED[what]
    fed.control.put("revocation/agent:known", revocation("known", reason="again"))
    fed.wait_standing(Standing.REVOKED, "agent:known")
    with fed.control.silence():
        wait_until(lambda: fed.said()["epoch"] == fed.control.journal.epoch, 5, lambda: str(fed.said()))
        assert fed.standing("agent:known") is Standing.REVOKED
        before, generation = fed.refused().get(reason, 0), fed.board.generation
        begun = time.monotonic()
        fed.control.send(make(fed.control))
        wait_until(lambda: fed.refused().get(reason, 0) == before + 1, 5, lambda: f"{reason}: {fed.said()}")
        fed.wait_standing(Standing.STALE, "agent:known", seconds=FRESH_S + 0.5)
        assert time.monotonic() - begun <= FRESH_S + 0.1
        assert fed.board.generation == generation, "nothing of it reached the board"
    fed.wait_standing(Standing.REVOKED, "agent:known")
    assert fed.standing("agent:forged") is Standing.GO


def test_a_missing_entry_is_found_by_the_heartbeat_and_healed_when_it_comes(fed: Fed) -> None:
    missing = fed.control.journal.put("revocation/agent:missed", revocation("missed"))
    begun, before = time.monotonic(), fed.refused().get("digest", 0)
    fed.wait_standing(Standing.STALE, seconds=FRESH_S + 1)
    assert time.monotonic() - begun < FRESH_S + 0.5, "heartbeats go on, and none of them agrees"
    assert fed.refused()["digest"] > before
    fed.wait_why("digest")
    fed.control.send(missing)
    fed.wait_standing(Standing.REVOKED, "agent:missed")


def test_an_entry_that_comes_behind_a_later_one_is_obeyed_when_a_heartbeat_agrees(fed: Fed) -> None:
    epoch = fed.control.journal.epoch
    first = fed.control.journal.put("revocation/agent:first", revocation("first"))
    with fed.control.silence():
        fed.control.put("revocation/agent:second", revocation("second"))
        fed.wait_standing(Standing.REVOKED, "agent:second")
        assert fed.board.epoch == epoch, "nobody says that he has applied what lies between"
        fed.control.send(first)
        fed.wait_standing(Standing.REVOKED, "agent:first")
    wait_until(lambda: fed.standing() is Standing.GO and fed.board.epoch == epoch + 2, 5, lambda: str(fed.said()))


def test_a_forged_entry_does_not_stop_a_host_that_joins(fed: Fed) -> None:
    """Read without its signature at first, it spoils the digest; read again with it, it is refused and counted."""
    fed.control.send(forged(fed.control))
    fed.wardline.stop("enforce-1")
    fed.wardline.start("enforce-1")
    assert fed.refused()["key"] >= 1
    assert fed.standing("agent:forged") is Standing.GO
    assert fed.standing("agent:known") is Standing.REVOKED


def test_a_log_that_was_rolled_back_is_not_believed_after_a_restart(fed: Fed) -> None:
    """Genuine entries and a genuine signature, from before the last change that this host obeyed."""
    journal = fed.control.journal
    over = journal.put("revocation/agent:over", revocation("over"))
    fed.control.send(over)
    fed.control.remove("revocation/agent:over")
    old = Journal(log=list(journal.log), counter=journal.counter + 1_000)
    fed.control.put("revocation/agent:newer", revocation("newer"))
    wait_until(lambda: fed.said()["epoch"] == journal.epoch, 5, lambda: str(fed.said()))
    with fed.control.silence():
        fed.wardline.stop("enforce-1")
        fed.wardline.stop("broker")
        fed.wardline.start("broker")
        fed.wardline.start("enforce-1", wait=False)
        for data in (*old.whole(), old.beat()):
            fed.control.send(data)
        fed.wait_why(f"epoch {old.epoch}")
        fed.control.send(old.beat())
        time.sleep(0.5)
        assert fed.standing("agent:newer") is Standing.STALE
        assert fed.said()["state"] == "starting"
        assert fed.refused()["epoch"] >= 1
        fed.control.whole()
    fed.wait_standing(Standing.REVOKED, "agent:newer")
    fed.control.send(over)  # genuine, of a key that the new broker has never had
    wait_until(lambda: fed.refused().get("order", 0) == 1, 5, lambda: str(fed.said()))
    assert fed.standing("agent:over") is Standing.GO


def test_without_a_word_of_control_it_is_stale_within_five_seconds(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Fed(tmp_path_factory.mktemp("fed") / "home") as fed, fed.control.silence():
        fed.wait_standing(Standing.GO)
        last = time.monotonic()
        fed.wait_standing(Standing.STALE, seconds=STALE_S + 1)
        assert time.monotonic() - last <= STALE_S + 0.05
        fed.wait_why("no new heartbeat")
