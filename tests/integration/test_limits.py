"""What happens at the limits, and to lies about what is stored: calls wait, nothing is lost, nothing is forgotten too soon."""

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.frame import Lane
from schemas.frontier import Frontier
from schemas.keys import own_key
from schemas.process import read_run_file
from schemas.topics import Topics
from tests.support.data import REPOSITORY
from tests.support.fulldisk import NO_MOUNT
from tests.support.home import Wardline, wait_until
from tests.support.jobs import EXAMPLES, agentdojo_calls, assert_recorded, every, install_policies, judged


@pytest.mark.soak
@pytest.mark.data
def test_a_disk_that_is_full_makes_everything_wait_and_nothing_die(tmp_path: Path) -> None:
    ours = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*ours, "true"], capture_output=True, check=False).returncode:
        pytest.skip(NO_MOUNT)
    calls = every(agentdojo_calls(), 10, tmp_path / "tenth.jsonl")
    done = subprocess.run(
        [*ours, sys.executable, "-m", "tests.support.fulldisk", str(tmp_path), str(calls)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def _metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found = re.findall(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_a_forged_stored_is_refused_and_counted_and_the_outbox_is_kept(wardline: Wardline) -> None:
    """Signed by nobody, by a stranger under a worker's name, by a worker for frames that the lane does not have."""
    install_policies(wardline)
    worker = own_key(wardline.home, "workers", "work-1")  # which control registers
    wardline.start("broker")
    wardline.start("control")
    replay = wardline.popen("replay", str(EXAMPLES / "calls.jsonl"))
    path = wardline.home.run_file("replay-1")
    wait_until(lambda: (read_run_file(path) or {}).get("sent", 0) >= 1_000, 60, lambda: wardline.said("replay"))
    host = read_run_file(path)
    assert host is not None
    boxes = sorted((wardline.home.host("replay-1") / "outbox").glob("*.box"))
    assert boxes
    broker = read_run_file(wardline.home.run_file("broker"))
    assert broker is not None
    producer = Producer({"bootstrap.servers": broker["address"]})
    for partition in range(4):
        lane = Lane(host="replay-1", host_boot=int(host["boot"], 16), partition=partition)

        def frontier(frame_no: int, name: str, lane: Lane = lane) -> Frontier:
            return Frontier(lane=lane, frame_no=frame_no, stored_ns=time.time_ns(), worker=name)

        good = frontier(1, "work-1").encode(worker.sign)
        for data in (
            frontier(1, "work-1").encode(Ed25519PrivateKey.generate().sign),
            frontier(1, "stranger").encode(Ed25519PrivateKey.generate().sign),
            good[:20] + bytes([good[20] ^ 1]) + good[21:],
            good[:-1],
            frontier(1 << 40, "work-1").encode(worker.sign),
        ):
            producer.produce(Topics().stored, data, key=lane.text, partition=0)
    assert producer.flush(30) == 0
    wanted = {"signature": 8, "key": 4, "form": 4, "implausible": 4}
    counted = 'wardline_host_frontiers_total{{verdict="{}"}}'
    wait_until(
        lambda: all(_metric(host["metrics"], counted.format(why)) >= many for why, many in wanted.items()), 30,
        lambda: f"{[(why, _metric(host['metrics'], counted.format(why))) for why in wanted]}",
    )  # fmt: skip
    now = read_run_file(path)
    assert now is not None
    assert now["stored"] == 0
    assert sorted((wardline.home.host("replay-1") / "outbox").glob("*.box"))[: len(boxes)] == boxes
    # and the truth still gets through
    wardline.start("store")
    wardline.start("work-1")
    assert replay.wait(120) == 0, wardline.said("replay")
    assert_recorded(wardline, judged(EXAMPLES / "calls.jsonl"))
