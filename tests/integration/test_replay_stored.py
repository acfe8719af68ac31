"""`wardline replay` with the whole pipeline behind it: it ends when everything is stored, and goes on whatever stopped it."""

import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from enforcers.doors.progress import door_said
from schemas.home import Home
from schemas.process import is_alive
from tests.support.data import REPOSITORY
from tests.support.home import Wardline, wait_until

EXAMPLES = REPOSITORY / "pipeline" / "cli" / "examples"
SAMPLE = EXAMPLES / "calls.jsonl"


def with_policies(home: Wardline) -> Wardline:
    shutil.copytree(EXAMPLES / "policies", home.home.policies)
    return home


def repeat(path: Path, times: int) -> Path:
    path.write_bytes(SAMPLE.read_bytes() * times)
    return path


def figures(text: str) -> dict[str, str]:
    """The closing summary."""
    return {line[:24].strip(): line[24:].strip() for line in text.splitlines()}


def calls(home: Wardline) -> tuple[Any, ...]:
    return home.sql("SELECT count(), uniqExact(call_id), uniqExact(ref), countIf(outcome = '') FROM calls")[0]


def doors(home: Home) -> list[dict[str, Any]]:
    return [door_said(folder) or {} for folder in home.hosts.glob("*/doors/*") if len(folder.name) == 16]


def test_a_run_is_stored_summed_up_and_not_done_twice(wardline: Wardline) -> None:
    with_policies(wardline).start_all(enforcers=0)
    said = figures(wardline.replay(SAMPLE).stdout)
    assert said.keys() == {"calls", "allowed", "refused by policy", "rate", "all stored after"}
    assert calls(wardline) == (1000, 1000, 1000, 0)
    found = {verdict: str(n) for verdict, n in wardline.sql("SELECT verdict, count() FROM calls GROUP BY verdict")}
    assert (said["calls"], said["allowed"], said["refused by policy"]) == ("1,000", found["allow"], found["deny"])
    assert [d["stored"] for d in doors(wardline.home)] == [True]
    assert not list(wardline.home.hosts.glob("*/outbox/*.box"))

    again = wardline.replay(SAMPLE, "--resume").stdout
    assert again.endswith("all 1,000 lines were called and everything is stored; nothing is left to resume\n")
    assert calls(wardline) == (1000, 1000, 1000, 0)

    moved = wardline.home.root / "moved.jsonl"
    shutil.copy(SAMPLE, moved)
    assert "nothing is left to resume" in wardline.replay(moved, "--resume").stdout

    wardline.replay(SAMPLE)
    assert calls(wardline) == (2000, 2000, 1000, 0)


@pytest.mark.soak
def test_doors_share_a_file_and_their_figures_are_added_up(wardline: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 3)
    with_policies(wardline).start_all(enforcers=0)
    said = figures(wardline.replay(path, "--doors", "4").stdout)
    assert said.keys() == {"doors", "calls", "allowed", "refused by policy", "rate", "all stored after"}
    found = {verdict: f"{n:,}" for verdict, n in wardline.sql("SELECT verdict, count() FROM calls GROUP BY verdict")}
    assert (said["doors"], said["calls"]) == ("4", "3,000")
    assert (said["allowed"], said["refused by policy"]) == (found["allow"], found["deny"])
    assert calls(wardline) == (3000, 3000, 3000, 0)
    assert wardline.sql("SELECT count(), min(n), max(parts) FROM (SELECT count() AS n, uniqExact(ref % 4) AS parts FROM calls"
                        " GROUP BY boot)") == [(4, 750, 1)]  # fmt: skip
    assert [d["stored"] for d in doors(wardline.home)] == [True] * 4
    assert "nothing is left to resume" in wardline.replay(path, "--resume").stdout


def test_a_stopped_run_says_how_to_go_on_and_does(wardline: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 3)
    with_policies(wardline).start_all(enforcers=0)
    process = wardline.popen("replay", str(path), "--rate", "600")
    wait_until(lambda: calls(wardline)[0] > 300, 60, lambda: wardline.said("replay"))
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    said = wardline.said("replay")
    done = calls(wardline)
    assert f"stopped behind line {done[0]:,} of 3,000; to go on: " in said
    assert f" replay {path} --resume --home {wardline.home.root}" in said
    assert 300 < done[0] < 3000
    assert done == (done[0], done[0], done[0], 0)
    rest = figures(wardline.replay(path, "--resume").stdout)
    assert (rest["calls"], rest["done before"]) == (f"{3000 - done[0]:,}", f"{done[0]:,}")
    assert calls(wardline) == (3000, 3000, 3000, 0)
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]


def test_everything_is_killed_and_each_line_is_stored_once(wardline: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 4)
    with_policies(wardline).start_all(enforcers=0)
    process = wardline.popen("replay", str(path), "--rate", "400", "--doors", "2")
    both = "SELECT count(), uniqExact(boot) FROM calls"
    wait_until(lambda: (n := wardline.sql(both)[0])[0] > 500 and n[1] == 2, 60, lambda: wardline.said("replay"))
    pids = [process.pid, *(wardline.pid(name) for name in ("door-1", "door-2"))]
    # Their parent ends a door when it sees the other gone: all three are stopped before the first one is killed.
    for number, pid in itertools.product((signal.SIGSTOP, signal.SIGKILL), pids):
        os.kill(pid, number)
    process.wait(10)
    wait_until(lambda: not any(map(is_alive, pids)), 20, "both doors are gone")
    for name in ("replay-1", "work-1", "control", "store", "broker"):
        wardline.kill(name)
    wardline.start_all(enforcers=0)
    wardline.replay(path, "--resume")
    assert calls(wardline) == (4000, 4000, 4000, 0)
    assert wardline.sql("SELECT countIf(outcome = 'lost') <= 2 FROM calls") == [(True,)]
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]
    assert wardline.sql("SELECT uniqExact(boot) FROM calls") == [(4,)]


def test_an_enforcer_adopts_what_a_killed_replay_left(wardline: Wardline, tmp_path: Path) -> None:
    path = repeat(tmp_path / "calls.jsonl", 4)
    with_policies(wardline).start_all()
    process = wardline.popen("replay", str(path), "--rate", "1000")
    wait_until(lambda: calls(wardline)[0] > 300, 60, lambda: wardline.said("replay"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    wait_until(lambda: [d.get("stored") for d in doors(wardline.home)] == [True], 60, "the dead door is stored")
    before = calls(wardline)
    assert (before[3], before[0]) == (0, doors(wardline.home)[0]["last_ref"])
    wardline.replay(path, "--resume")
    assert calls(wardline) == (4000, 4000, 4000, 0)


@pytest.mark.soak
def test_a_full_spool_and_outbox_make_it_wait_and_nothing_is_refused_for_that(tmp_path: Path) -> None:
    limits = {"segment_bytes": 1 << 16, "spool_bytes": 1 << 18, "spool_reserved_bytes": 1 << 16, "outbox_bytes": 1 << 20}
    small = "\n".join(["[enforcer]", *(f"{name} = {value}" for name, value in limits.items())])
    path = repeat(tmp_path / "calls.jsonl", 40)
    with Wardline(tmp_path / "home", config=small) as home:
        with_policies(home)
        for name in ("broker", "store", "control"):
            home.start(name)
        process = home.popen("replay", str(path), "--doors", "2")
        wait_until(lambda: "waiting: door-" in home.said("replay"), 60, lambda: home.said("replay"))
        time.sleep(1.0)
        assert process.poll() is None
        home.start("work-1")
        assert process.wait(120) == 0, home.said("replay")
        assert calls(home) == (40_000, 40_000, 40_000, 0)
        assert home.sql("SELECT DISTINCT reason FROM calls ORDER BY reason") == [("forbid",), ("no-permit",), ("permit",)]
        assert home.sql("SELECT count() FROM gaps") == [(0,)]


@pytest.mark.soak
def test_a_host_that_an_enforcer_has_adopted_is_given_back(wardline: Wardline, tmp_path: Path) -> None:
    """Without a broker the enforcer cannot finish with what the dead replay left, so it still holds it when the run resumes."""
    path = repeat(tmp_path / "calls.jsonl", 4)
    with_policies(wardline).start_all()
    process = wardline.popen("replay", str(path), "--rate", "500")
    wait_until(lambda: calls(wardline)[0] > 300, 60, lambda: wardline.said("replay"))
    for name in ("broker", "control"):
        wardline.kill(name)
    wardline.kill("work-1")  # it would end when the broker is a new one, and here is nobody to start it again
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    wait_until(lambda: "host replay-1 is adopted" in wardline.said("enforce-1"), 30, lambda: wardline.said("enforce-1"))
    resumed = wardline.popen("replay", str(path), "--resume", log="resumed")
    wait_until(lambda: "host replay-1 is wanted back" in wardline.said("enforce-1"), 30, lambda: wardline.said("enforce-1"))
    for name in ("broker", "control", "work-1"):
        wardline.start(name)
    assert resumed.wait(120) == 0, wardline.said("resumed")
    assert calls(wardline) == (4000, 4000, 4000, 0)
    assert wardline.sql("SELECT count() FROM gaps") == [(0,)]
