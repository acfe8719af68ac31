"""Broker, store or disk are gone while a door serves: nothing goes out without a record, and all comes back by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data import REPOSITORY
from tests.support.egressload import Load, settle
from tests.support.fulldisk import NO_MOUNT
from tests.support.governed import Governed

SMALL = "segment_bytes = 65536\nspool_bytes = 524288\nspool_reserved_bytes = 65536\noutbox_bytes = 1048576"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with Governed(tmp_path_factory.mktemp("outage"), enforcer=SMALL, names=("www.example.test",)) as made:
        yield made


@pytest.mark.parametrize("gone", ["broker", "store"])
def test_without_it_calls_are_refused_once_the_spool_is_full_and_with_it_each_call_is_there_once(
    site: Governed, gone: str
) -> None:
    """It hangs, so that nothing is carried away any more, then it dies; `up` starts it again."""
    with Load(site) as load:
        load.until(200, 200)
        pid = site.wardline.sigstop(gone)
        load.until(503, 50, recorded=False)
        os.kill(pid, signal.SIGKILL)
        load.until(200, 200, 90)
    settle(site, load)


def test_on_a_full_disk_nothing_goes_out_without_a_record_and_with_room_it_serves_again(tmp_path: Path) -> None:
    ours = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*ours, "true"], capture_output=True, check=False).returncode:
        pytest.skip(NO_MOUNT)
    done = subprocess.run(
        [*ours, sys.executable, "-m", "tests.support.fulldoor", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
