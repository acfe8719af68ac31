"""The worker as a process, on the embedded broker and store: each record comes out once, whatever is done to it."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.frame import Frame
from schemas.limits import FRAME_BYTES_MAX
from schemas.process import is_alive, read_run_file
from tests.support.frames import Host, forged, record
from tests.support.home import Wardline, wait_until
from tests.support.site import DEAD, Site


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Wardline(tmp_path_factory.mktemp("worker") / "home") as wardline:
        yield Site(wardline)


@pytest.fixture
def site(shared: Site) -> Site:
    shared.begin()
    return shared


def test_frames_become_rows_once_and_what_cannot_be_believed_a_dead_letter(site: Site, tmp_path: Path) -> None:
    site.restart()
    host = site.host
    good = {partition: [host.frame(50, partition) for _ in range(4)] for partition in range(4)}
    messages: list[tuple[int, Frame | bytes]] = []
    for partition, frames in good.items():
        messages += [(partition, forged(frames[0])), *((partition, frame) for frame in frames), (partition, frames[1])]
    truncated = good[0][2].wire[:-7]
    stray = host.frame(5, 3, frame_no=99)
    oversized = good[0][0].wire + bytes(FRAME_BYTES_MAX)
    wrong = host.frame([record(1000, kind=6)], 0)
    stranger = Host("stranger").frame(2, 1)
    messages += [(0, truncated), (2, stray), (1, oversized), (0, wrong), (1, stranger), (0, b"noise"), (3, good[3][0])]
    site.send(messages)
    for partition in range(4):
        site.wait_frontier(host.lane(partition).text, 5 if partition == 0 else 4)
    assert site.counts() == (800, 800, 17, 17)
    assert site.letters() == [
        ("digest", 0, len(truncated), "new"),
        ("form", 0, 5, "new"),
        ("key", 1, len(stranger.wire), "new"),
        ("limit", 1, len(oversized), "new"),
        ("partition", 2, len(stray.wire), "new"),
        *(("signature", n, len(forged(good[n][0])), "new") for n in range(4)),
        ("value", 0, len(wrong.wire), "new"),
    ]
    flagged = "SELECT seq, toString(frame_flag), frame_records FROM TABLE WHERE MINE AND boot = 0 AND frame_flag != ''"
    assert site.sql(flagged) == [(5, "dead", 1)]
    wait_until(lambda: site.figures()["duplicates"] == 5, 5, lambda: str(site.figures()))
    figures = site.figures()
    assert (figures["records"], figures["frames"], figures["dead_letters"], figures["put_off"]) == (800, 16, 10, 0)
    woken = site.read(DEAD)
    assert len(woken) == 10
    assert {data.decode() for data in woken} < set(site.sent)

    listed = site.wardline.run("deadletter", "list").stdout.splitlines()
    assert len(listed) == 10
    (line,) = [line for line in listed if " value " in line]
    short = line.split()[0]
    out = tmp_path / "letter"
    shown = site.wardline.run("deadletter", "show", short, "--out", str(out)).stdout
    assert "kind 6" in shown
    assert out.read_bytes() == wrong.wire
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_chain_that_does_not_fit_is_stored_and_flagged(site: Site) -> None:
    host = site.host
    site.send([(0, host.frame(2)), (0, host.frame(2, previous=b"x" * 32)), (0, host.frame(2))])
    site.wait_frontier(host.lane(0).text, 3)
    flags = site.sql("SELECT seq, toString(frame_flag) FROM TABLE WHERE MINE AND boot = 0 ORDER BY seq")
    assert flags == [(1, ""), (2, "chain"), (3, "")]


def test_dead_letters_are_sent_again_when_whoever_must_has_put_it_right(site: Site) -> None:
    """A host that was not registered, and frames that an older worker could not read."""
    late = site.host = Host("late")
    site.send([(0, late.frame(3)), (1, late.frame(4, 1)), (0, b"noise")])
    wait_until(lambda: len(site.letters()) == 3, 20, lambda: site.wardline.said("work-1"))
    for words, said in (
        (("retry",), "give the ids"),
        (("retry", "--all", "0123456789"), "give the ids"),
        (("show", "xyz"), "`xyz` is no id"),
        (("show", "0" * 64), "there is no dead letter"),
        (("retry", "f" * 65), "is no id"),
    ):
        done = site.wardline.run("deadletter", *words, check=False)
        assert done.returncode == 2
        assert said in done.stderr, words
        assert done.stderr.count("\n") == 1
    (site.home.trusted("hosts") / "late.pub").write_bytes(_public(late))
    site.register(late)
    assert "sent again" in site.wardline.run("deadletter", "retry", *site.sent).stdout
    site.wait_frontier(late.lane(1).text, 1)
    site.wait_frontier(late.lane(0).text, 1)
    assert site.counts() == (7, 7, 2, 2)
    wait_until(lambda: ("form", 0, 5, "new") in site.letters(), 20, "what is refused again is new again")
    assert {state for reason, *_, state in site.letters() if reason == "key"} == {"retried"}
    assert "sent again" in site.wardline.run("deadletter", "retry", "--all").stdout
    jsons = site.wardline.run("deadletter", "list", "--json").stdout.splitlines()
    assert {json.loads(line)["id"] for line in jsons} >= set(site.sent)


def _public(host: Host) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return host.key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_frame_that_an_older_worker_passed_as_dead_is_stored_when_it_is_sent_again(site: Site) -> None:
    host = site.host
    first, second = host.frame(3), host.frame(3)
    site.send([(0, first)])
    site.wait_frontier(host.lane(0).text, 1)
    site.wardline.stop("work-1")
    # what an older worker would have left of a frame that it could not read
    columns = "kind, boot, seq, call_seq, time, recorded, enforcer, enforcer_boot, partition, frame_no, ingested, frame_digest"
    site.wardline.sql(
        f"INSERT INTO wardline.records ({columns}, frame_flag) SELECT 0, 0, 2, {host.boot}, 0, 0, '{host.name}', {host.boot},"
        f" 0, 2, now(), unhex('{second.digest.hex()}'), 'dead'",
        user="writer",
    )
    site.wardline.start("work-1")
    site.send([(0, second), (0, second)])
    wait_until(lambda: site.counts()[0] == 6, 20, lambda: f"{site.counts()} {site.wardline.said('work-1')}")
    time.sleep(0.6)
    assert site.counts() == (6, 6, 3, 2), "its own row twice, dead and alive, its records once"


def test_a_worker_killed_in_mid_load_stores_each_row_once(site: Site) -> None:
    host = site.host
    frames = [(n % 4, host.frame(200, n % 4)) for n in range(240)]
    for start in range(0, 240, 40):
        site.send(frames[start : start + 40])
        time.sleep(0.15)
        site.kill_worker()
        site.send(frames[start : start + 40 : 7])  # a host that heard nothing sends again
        site.wardline.start("work-1", wait=start % 80 == 0)
        if start % 80:
            time.sleep(1.5)
    site.wardline.wait_ready("work-1")
    for partition in range(4):
        site.wait_frontier(host.lane(partition).text, 60)
    assert site.counts() == (48_000, 48_000, 240, 240)


def test_a_store_that_is_away_is_waited_for(site: Site) -> None:
    host = site.host
    pid = site.wardline.pid("work-1")
    site.send([(0, host.frame(20))])
    site.wait_frontier(host.lane(0).text, 1)
    site.wardline.kill("store")
    site.send([(n % 4, host.frame(20, n % 4)) for n in range(8)])
    wait_until(lambda: site.figures()["waits_for"], 20, lambda: site.wardline.said("work-1"))
    time.sleep(3)
    assert site.wardline.pid("work-1") == pid
    site.wardline.start("store")
    for partition in range(4):
        site.wait_frontier(host.lane(partition).text, 3 if partition == 0 else 2)
    assert site.wardline.pid("work-1") == pid, "it waited, it was not started again"
    assert site.counts() == (180, 180, 9, 9)
    wait_until(lambda: not site.figures()["waits_for"], 5, "it does not wait any more")


def test_a_worker_that_another_has_fenced_stores_nothing_and_ends_to_be_started_again(site: Site) -> None:
    host = site.host
    site.send([(0, host.frame(5)), (1, host.frame(5, 1))])
    site.wait_frontier(host.lane(0).text, 1)
    site.wardline.sql(
        "INSERT INTO wardline.fence (partition, epoch, owner) SELECT 0, max(epoch) + 1, 'another' FROM wardline.fence",
        user="writer",
    )
    before = site.counts()
    site.send([(0, host.frame(5))])
    assert site.worker().wait(20) == 75
    assert site.counts() == before
    site.wardline.start("work-1")
    site.wait_frontier(host.lane(0).text, 2)
    assert site.counts() == (15, 15, 3, 3)


def test_another_embedded_broker_ends_the_worker_and_what_it_forgot_is_known(site: Site) -> None:
    host = site.host
    first = [host.frame(10) for _ in range(3)]
    site.send([(0, frame) for frame in first])
    site.wait_frontier(host.lane(0).text, 3)
    site.wardline.kill("broker")
    site.wardline.start("broker")
    assert site.worker().wait(20) == 75
    site.wardline.start("work-1")
    site.send([(0, frame) for frame in first[1:]])
    site.wait_frontier(host.lane(0).text, 3)
    site.send([(0, host.frame(10))])
    site.wait_frontier(host.lane(0).text, 4)
    assert site.counts() == (40, 40, 4, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_stores_what_it_took_and_ends_with_0(site: Site, number: int) -> None:
    host = site.host
    site.send([(n % 4, host.frame(100, n % 4)) for n in range(40)])
    wait_until(lambda: site.counts()[0], 20, "something is stored")
    began = time.monotonic()
    assert site.wardline.stop("work-1", number=number) == 0
    assert time.monotonic() - began < 10
    assert not site.home.run_file("work-1").exists()


def test_a_worker_that_is_told_to_stop_does_not_wait_for_a_store_that_hangs(site: Site) -> None:
    host = site.host
    site.send([(0, host.frame(5))])
    site.wait_frontier(host.lane(0).text, 1)
    site.wardline.sigstop("store")
    site.send([(0, host.frame(5))])
    time.sleep(1)
    began = time.monotonic()
    assert site.wardline.stop("work-1") == 0
    assert time.monotonic() - began < 10
    site.wardline.sigcont("store")
    site.wardline.start("work-1")
    site.wait_frontier(host.lane(0).text, 2)
    assert site.counts() == (10, 10, 2, 2)


def test_the_embedded_broker_has_one_worker(site: Site) -> None:
    done = site.wardline.run("work", "--slot", "2", check=False)
    assert done.returncode == 2
    assert f"the embedded broker's one worker is held by process {site.wardline.pid('work-1')}" in done.stderr


def test_a_worker_leaves_when_its_parent_dies(site: Site) -> None:
    wardline = site.wardline
    site.wardline.stop("work-1")
    script = "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(600)"
    words = wardline.words("work")
    command = ["sh", "-c", 'WARDLINE_PARENT=$$ exec "$@"', "sh", words[0], "-c", script, *words]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        wait_until(lambda: (read_run_file(wardline.home.run_file("work-1")) or {}).get("pid") == child, 30, "it is there")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: not is_alive(child), 15, "the worker is gone")
