"""A home on a disk that becomes full in mid-replay: `python -m tests.support.fulldisk FOLDER CALLS`, in a mount namespace.

Exit code 0 when nothing died, nothing was refused or lost for it, and everything went on by itself when there was room again.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from schemas.process import read_run_file
from tests.support.faults import replaying
from tests.support.home import Wardline
from tests.support.jobs import assert_recorded, install_policies, judged

DISK = "size=192m"
NO_MOUNT = "no mount namespace can be made here"
FULL_S = 6.0
LIMITS = "[enforcer]\nsegment_bytes = 65536\nspool_bytes = 1048576\nspool_reserved_bytes = 131072\n"
NAMES = ("broker", "store", "work-1", "replay-1")


def main(folder: Path, calls: Path) -> None:
    """Mount, fill, wait, make room, count."""
    root = folder / "home"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(root)], check=True)
    expected = judged(calls)
    with Wardline(root, config=LIMITS) as home:
        install_policies(home)
        home.start_all(enforcers=0)
        with replaying(home, calls, 700) as replay:
            time.sleep(2)
            pids = {name: home.pid(name) for name in NAMES}
            fill(root / "ballast")
            time.sleep(FULL_S)
            stored = home.sql("SELECT count() FROM records")
            time.sleep(1)
            assert home.sql("SELECT count() FROM records") == stored, "the disk was not full"
            assert replay.poll() is None
            said = {name: read_run_file(home.home.run_file(name)) for name in NAMES}
            assert {name: (one or {}).get("pid") for name, one in said.items()} == pids
            assert all(one is not None and one["alive"] for one in said.values())
            (root / "ballast").unlink()
        for name in NAMES[:3]:
            assert home.pid(name) == pids[name], f"{name} has died"
        assert_recorded(home, expected)


def fill(ballast: Path) -> None:
    """Leave not one block."""
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    os.write(handle, bytes(size))
                except OSError:
                    break
    finally:
        os.close(handle)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
