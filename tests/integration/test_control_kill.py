"""Control killed with -9 at every step of a change: it is in force everywhere or nowhere, and asking by its id says which."""

import contextlib
import http.client
import itertools
import random
import sqlite3
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.standing import entry_of
from tests.support.controlling import DISK_FAILS, MADE_FROM, STEPS, Controlled

pytestmark = pytest.mark.soak

SECRET = f"scrypt$16384$8$1${'A' * 24}${'B' * 44}"
BROKEN = (OSError, http.client.HTTPException)


def journalled(home: Controlled) -> dict[str, Any]:
    """Key -> value of what the journal says is live."""
    base = sqlite3.connect(f"file:{home.home.control / 'journal.sqlite'}?mode=ro", uri=True)
    rows = [entry_of(row[0]) for row in base.execute("SELECT payload FROM entries ORDER BY epoch")]
    base.close()
    live: dict[str, Any] = {}
    for entry in rows:
        live.pop(entry.key, None)
        if entry.value is not None:
            live[entry.key] = entry.value
    return live


def followed(home: Controlled) -> dict[str, Any]:
    """The same, from the topic, by somebody who joins."""
    return {entry.key: entry.value for entry in home.joined().entries()}


@pytest.mark.parametrize("new_broker", [False, pytest.param(True, marks=pytest.mark.soak)],
                         ids=["the broker lives", "the broker is a new one each time"])  # fmt: skip
def test_a_change_is_made_everywhere_or_nowhere(tmp_path: Path, new_broker: bool) -> None:
    """Removing an agent is two entries: nobody may ever see one of them alone. Each start answers for the death before it."""
    with Controlled(tmp_path / "home") as home:
        home.start_all()
        for number in range(len(STEPS)):
            home.client.change("agent-add", name=f"x{number}", owner="o", secret=SECRET)
        assert home.stop() == 0
        for number, step in enumerate(STEPS):
            process = home.start(step=step)
            request_id = str(uuid.uuid4())
            try:
                home.client.change("agent-remove", request_id=request_id, name=f"x{number}")
            except BROKEN:
                pass
            else:  # publishing goes on beside the head and the answer, which may be out before a death there
                assert "first send" in step, step
            assert process.wait(60) == -9, step
            if new_broker:
                home.kill("broker")
                home.start("broker")
            home.start()
            status, answer = home.client.ask("GET", f"/changes/{request_id}")
            made = number >= MADE_FROM
            assert status == (200 if made else 404), step
            live = journalled(home)
            there = f"agent/x{number}" in live, f"revocation/agent*:x{number}" in live
            assert there == ((False, True) if made else (True, False)), step
            assert followed(home) == live, step
            again, said = home.client.ask("POST", "/changes", {"id": request_id, "do": "agent-remove", "name": f"x{number}"})
            if made:
                assert (again, said) == (200, answer), f"{step}: the same request again is answered the same"
            else:
                assert again == 410, f"{step}: what was said not to be made is not made behind it"
                assert "was said not to be made" in said["error"]
            home.kill()


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_whatever_was_answered_is_in_force_after_any_number_of_kills(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with Controlled(tmp_path / "home", config="[control]\nheartbeat_ms = 100\n") as home:
        home.start("broker")
        told: dict[str, str] = {}
        """selector -> `made`, `not made`, or the id whose answer never came."""
        number = 0
        for _ in range(8):
            home.start()
            settle(home, told)
            killer = threading.Timer(rng.uniform(0.0, 0.4), home.kill)
            killer.start()
            with contextlib.suppress(*BROKEN):
                while True:
                    number += 1
                    request_id, name = str(uuid.uuid4()), f"s{number}"
                    told[name] = request_id
                    home.client.change("revoke", request_id=request_id, kind="session", name=name, reason="test")
                    told[name] = "made"
            killer.join()
            if rng.random() < 0.3:
                home.kill("broker")
                home.start("broker")
        home.start()
        settle(home, told)
        made = {name for name, said in told.items() if said == "made"}
        live = journalled(home)
        assert {key.removeprefix("revocation/session:") for key in live if key.startswith("revocation/")} == made
        assert len(made) > 8
        assert followed(home) == live


def settle(home: Controlled, told: dict[str, str]) -> None:
    """Ask what became of the requests that were not answered."""
    for name, said in told.items():
        if said not in ("made", "not made"):
            status, _ = home.client.ask("GET", f"/changes/{said}")
            told[name] = {200: "made", 404: "not made"}[status]


def test_a_disk_that_fails_in_mid_commit_ends_control_before_it_says_anything(tmp_path: Path) -> None:
    with Controlled(tmp_path / "home") as home:
        home.start_all()
        live = journalled(home)
        home.stop()
        process = home.start(step=DISK_FAILS)
        request_id = str(uuid.uuid4())
        with pytest.raises(BROKEN):
            home.client.change("pause", request_id=request_id, reason="fire")
        assert process.wait(60) == 1
        assert "the journal has failed in the middle of a change: disk I/O error" in home.said()
        assert "Traceback" not in home.said()
        home.start()
        assert home.client.ask("GET", f"/changes/{request_id}")[0] == 404
        assert followed(home) == journalled(home) == live


def test_heartbeats_only_grow_over_kills_and_restarts(tmp_path: Path) -> None:
    with Controlled(tmp_path / "home", config="[control]\nheartbeat_ms = 100\n") as home:
        home.start("broker")
        for _ in range(4):
            home.start()
            time.sleep(0.35)
            home.kill()
        beats = [message for message in home.read() if message.key == b"heartbeat"]
        counters = [entry_of(message.value[76:]).value["counter"] for message in beats]  # type: ignore[index]
        assert len(counters) >= 8
        assert all(a < b for a, b in itertools.pairwise(counters))


def test_a_damaged_journal_keeps_control_from_starting_and_says_what_to_do(tmp_path: Path) -> None:
    with Controlled(tmp_path / "home") as home:
        home.start_all()
        home.client.change("revoke", kind="agent", name="x", reason="leak")
        home.stop()
        path = home.home.control / "journal.sqlite"
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"\0" * 4096 + whole[4096:], whole.replace(b"leak", b"lick")):
            assert damaged != whole
            path.write_bytes(damaged)
            process = home.start(wait=False)
            assert process.wait(60) == 2
            said = home.said().strip().splitlines()[-1]
            assert said.startswith(f"wardline: {path}: ")
            assert "restore the whole folder" in said
            assert "Traceback" not in home.said()
        path.write_bytes(whole)
        home.start()
        assert home.client.get("/live?kind=revocation")["entries"][0]["value"]["reason"] == "leak"


def test_an_old_copy_of_the_journal_is_known_by_what_was_published(tmp_path: Path) -> None:
    with Controlled(tmp_path / "home") as home:
        home.start_all()
        home.stop()
        backup = {path.name: path.read_bytes() for path in home.home.control.glob("*.*")}
        home.start()
        epoch = home.client.change("revoke", kind="agent", name="x", reason="leak")["epoch"]
        home.stop()
        for name, data in backup.items():
            (home.home.control / name).write_bytes(data)
        process = home.start(wait=False)
        assert process.wait(60) == 2
        assert f"has `revocation/agent:x` of epoch {epoch}, signed by this control: the journal is an old copy" in home.said()


def test_a_journal_that_is_begun_anew_goes_on_above_what_was_published(tmp_path: Path) -> None:
    with Controlled(tmp_path / "home") as home:
        home.start_all()
        epoch = home.client.change("revoke", kind="agent", name="x", reason="leak")["epoch"]
        before = home.joined()
        home.stop()
        for path in home.home.control.iterdir():
            path.unlink()
        home.start()
        after = home.joined()
        assert min(entry.epoch for entry in after.entries()) > epoch
        assert after.counter > before.counter
        assert not after.entries("revocation")
