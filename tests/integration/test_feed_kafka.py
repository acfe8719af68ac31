"""A host on a real Kafka: how long it takes to join a large log, and what it still does meanwhile."""

import os
import time
from pathlib import Path

import pytest

from schemas.records import Standing
from tests.support.entries import revocation
from tests.support.fed import HOST, Fed
from tests.support.home import wait_until
from tests.support.kafka import Kafka

LIVE = 100_000
JOIN_S = 10.0


def cpu_s(pid: int) -> float:
    """Processor time of a process so far: other load on the machine adds nothing to it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.soak
def test_a_host_joins_a_hundred_thousand_live_entries_in_less_than_ten_seconds_of_work(tmp_path: Path, kafka: Kafka) -> None:
    with Fed(tmp_path / "home", kafka=kafka.address, every=1.0) as fed:
        with fed.control.silence():
            fed.wardline.stop(HOST)
            for number in range(LIVE):
                data = fed.control.journal.put(f"revocation/agent:{number}", revocation(str(number)))
                fed.control.send(data, key=str(number).encode(), flush=number == LIVE - 1)
        begun = time.monotonic()
        fed.wardline.start(HOST, wait=False)
        wait_until(lambda: fed.said().get("control"), 30, lambda: str(fed.said()))
        up = time.monotonic()
        last = f"agent:{LIVE - 1}"
        fed.wait_standing(Standing.REVOKED, last, "agent:0", seconds=6 * JOIN_S)
        work = cpu_s(fed.wardline.pid(HOST))
        print(f"start {up - begun:.1f} s, join {time.monotonic() - up:.1f} s, {work:.1f} s of work in all")
        fed.control.remove(f"revocation/{last}")
        fed.wait_standing(Standing.GO, last)
        wait_until(lambda: fed.said()["epoch"] == fed.control.journal.epoch, 5, lambda: str(fed.said()))
        assert fed.refused() == {}
        assert work < JOIN_S
