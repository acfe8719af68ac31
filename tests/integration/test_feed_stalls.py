"""A host whose feed stands still, that stands still itself, or that starts without control: stale, and nothing is forgotten."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.bundle import Bundle, Rule
from schemas.process import read_run_file
from schemas.records import Standing
from tests.support.entries import revocation
from tests.support.fed import HOST, STALE_S, Fed
from tests.support.home import wait_until

REVOKED = "agent:revoked"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    with Fed(tmp_path_factory.mktemp("fed") / "home", every=0.1) as fed:
        yield fed


@pytest.fixture
def fed(shared: Fed) -> Fed:
    """Fresh, and nobody is revoked."""
    if REVOKED in {entry.name for entry in shared.control.journal.live().values()}:
        shared.control.remove(f"revocation/{REVOKED}")
    shared.wait_standing(Standing.GO, REVOKED)
    return shared


def revoke(fed: Fed) -> None:
    fed.control.put(f"revocation/{REVOKED}", revocation("revoked"))


def test_a_feed_that_stands_still_makes_the_board_stale_within_five_seconds(fed: Fed) -> None:
    """The broker is stopped and says nothing, not even that it is gone; the host lives."""
    with fed.control.silence():
        broker = fed.wardline.sigstop("broker")
        stopped = time.monotonic()
        try:
            fed.wait_standing(Standing.STALE, seconds=STALE_S + 1)
            assert time.monotonic() - stopped <= STALE_S
            wait_until(lambda: fed.said()["control"]["state"] == "stale", 2, lambda: str(fed.said()))
        finally:
            os.kill(broker, signal.SIGCONT)
    fed.wait_standing(Standing.GO)


def test_a_host_that_was_stopped_takes_no_old_heartbeat_for_a_new_one(fed: Fed) -> None:
    """What lay in its buffers while it stood still says that nobody is revoked, and was true when it was written."""
    with fed.watched(REVOKED) as seen:
        host = fed.wardline.sigstop(HOST)
        try:
            time.sleep(0.5)
            revoke(fed)
            time.sleep(STALE_S)
            assert [standing for _, standing in seen] == [Standing.GO, Standing.STALE]
        finally:
            os.kill(host, signal.SIGCONT)
        fed.wait_standing(Standing.REVOKED, REVOKED)
        time.sleep(0.3)
    after = [standing for _, standing in seen[1:]]
    assert after[0] is Standing.STALE
    assert Standing.GO not in after, seen


def test_a_host_that_is_killed_leaves_a_board_that_is_believed_no_longer_than_it_said(fed: Fed) -> None:
    fed.wait_standing(Standing.GO)
    fed.wardline.kill(HOST)
    killed = time.monotonic()
    with fed.watched(REVOKED) as seen:
        revoke(fed)
        fed.wait_standing(Standing.STALE, REVOKED, seconds=STALE_S + 1)
        assert time.monotonic() - killed <= STALE_S
        fed.wardline.start(HOST)
        fed.wait_standing(Standing.REVOKED, REVOKED)
    assert [standing for _, standing in seen] == [Standing.GO, Standing.STALE, Standing.REVOKED]


def test_on_a_broker_that_forgot_everything_and_without_control_nothing_is_decided(fed: Fed) -> None:
    revoke(fed)
    digest = fed.control.policy(Bundle(rules=(Rule(id="all", forbid=False),)))
    wait_until(lambda: fed.said()["policy_digest"] == digest, 5, lambda: str(fed.said()))
    epoch = fed.said()["epoch"]
    with fed.control.silence():
        fed.wardline.stop(HOST)
        fed.wardline.stop("broker")
        kept = json.loads((fed.home.host(HOST) / "feed.json").read_bytes())
        assert (kept["epoch"], kept["enforcers"]) == (epoch, {HOST: fed.key()})
        fed.wardline.start("broker")
        fed.wardline.start(HOST, wait=False)
        wait_until(lambda: fed.said().get("control"), 15, lambda: str(fed.said()))
        with fed.watched() as seen:
            time.sleep(2)
        assert [standing for _, standing in seen] == [Standing.STALE]
        assert (fed.said()["state"], fed.said()["control"]["state"], fed.said()["epoch"]) == ("starting", "joining", 0)
        fed.control.whole()  # control is back: what is live, in the order of its epochs
    fed.wardline.wait_ready(HOST)
    assert fed.standing(REVOKED) is Standing.REVOKED
    assert (fed.said()["policy_digest"], fed.said()["epoch"]) == (digest, epoch)


def test_a_new_broker_is_read_from_its_beginning_and_the_board_forgets_nothing_meanwhile(fed: Fed) -> None:
    revoke(fed)
    with fed.control.silence():
        fed.wait_standing(Standing.REVOKED, REVOKED)
        with fed.watched(REVOKED) as seen:
            fed.wardline.kill("broker")
            fed.wardline.start("broker")
            time.sleep(0.5)  # the host has found it, and nothing on it
            fed.control.whole()
            fed.control.beating = True
            time.sleep(1.5)
        assert {standing for _, standing in seen} <= {Standing.REVOKED, Standing.STALE}
    fed.control.remove(f"revocation/{REVOKED}")
    fed.wait_standing(Standing.GO, REVOKED)


def test_what_cannot_be_kept_is_not_acknowledged_and_not_fresh(fed: Fed) -> None:
    path = fed.home.host(HOST) / "feed.json"
    beside = path.with_name("feed.kept")
    path.rename(beside)
    path.mkdir()
    try:
        revoke(fed)
        fed.wait_standing(Standing.REVOKED, REVOKED)
        epoch = fed.control.journal.epoch
        fed.wait_standing(Standing.STALE, REVOKED, seconds=STALE_S + 1)
        fed.wait_why("feed.json: cannot be written")
        wait_until(lambda: [ack for ack in fed.acks() if ack.state == "stale"], 3, lambda: str(fed.acks()))
        assert max(ack.epoch for ack in fed.acks()) < epoch
    finally:
        path.rmdir()
    fed.wait_standing(Standing.REVOKED, REVOKED)
    wait_until(lambda: fed.acks()[-1].epoch == epoch, 3, lambda: str(fed.acks()[-1]))


def test_a_damaged_feed_file_stops_the_host_with_what_to_do(fed: Fed) -> None:
    fed.wardline.stop(HOST)
    path = fed.home.host(HOST) / "feed.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    done = fed.wardline.run("enforce", "--slot", "1", "--doors", "0", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"wardline: {path}: is damaged")
    assert "remove the file" in done.stderr
    path.unlink()
    fed.wardline.start(HOST)
    assert json.loads(path.read_bytes())["epoch"] == fed.control.journal.epoch


def test_a_host_without_a_pinned_key_waits_and_says_so(tmp_path: Path) -> None:
    with Fed(tmp_path / "home") as fed:
        fed.wardline.stop(HOST)
        (fed.home.host(HOST) / "feed.json").unlink()
        pins = list(fed.home.trusted("control").glob("*.pub"))
        kept = {path: path.read_bytes() for path in pins}
        for path in pins:
            path.unlink()
        fed.wardline.start(HOST, wait=False)
        fed.wait_why("no control key is pinned")
        for path, data in kept.items():
            path.write_bytes(data)
        fed.wardline.wait_ready(HOST)
        assert (read_run_file(fed.home.run_file(HOST)) or {})["control"] == {"state": "ready", "why": ""}
