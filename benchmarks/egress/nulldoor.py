"""The door whose records go nowhere: what it saves is what the record costs. Only this harness has it; no option of the product
turns the record off.

It is the shipped door, by the shipped entry, on the same board and agents, with another object in its spool's place; its host
keeps its board and has no record of it. `python -m benchmarks.egress.nulldoor --home DIR --name door-N` is what `null_door`
starts.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.egress.arms import NULL, Arm
from benchmarks.egress.site import HOST, Site
from benchmarks.wire.tools import MEASURED, end, free_port, on
from enforcers.core.call import Record
from enforcers.doors.egress import run
from enforcers.doors.egress.orders import Orders
from schemas.config import Enforcer, load_config
from schemas.process import read_run_file
from schemas.records import make_boot
from tests.support.home import wait_until

NAME: Final = "door-900"
REPOSITORY: Final = Path(__file__).resolve().parents[2]


class NullSpooler:
    """Stands where a door's spool stands: counts records, keeps none."""

    def __init__(self, host_folder: Path, boot: int, limits: Enforcer) -> None:
        del host_folder, limits
        self._own = tempfile.TemporaryDirectory(prefix="wardline-null-")
        self.folder = Path(self._own.name)
        self.boot = boot
        self.last_seq = 0
        self.last_ref = 0

    def append(self, record: Record) -> int:
        del record
        self.last_seq += 1
        return self.last_seq

    def complete(self, *end: object) -> bool:
        del end
        return True

    def close(self) -> None:
        self._own.cleanup()

    abandon = close


@contextlib.contextmanager
def null_door(site: Site, port: int) -> Iterator[Arm]:
    """Such a door beside those of the site, until the block ends."""
    home, config = site.home.home, load_config(site.home.home.config)
    listen, boot = free_port(), make_boot(int(time.time()), secrets.randbits(32))
    orders = Orders(
        host=HOST, name=NAME, boot=f"{boot:016x}", port=listen, own=(), egress=config.egress, enforcer=config.enforcer,
        issuers=config.issuer,
    )  # fmt: skip
    with (home.log / f"{NAME}.log").open("ab") as out:
        process = subprocess.Popen(
            [*on(MEASURED), sys.executable, "-m", "benchmarks.egress.nulldoor", "--home", str(home.root)],
            stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=REPOSITORY, start_new_session=True,
            env=os.environ | {"WARDLINE_PARENT": str(os.getpid())},
        )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(orders.encode())
        process.stdin.close()
        wait_until(lambda: (read_run_file(home.run_file(NAME)) or {}).get("state") == "ready", 60,
                   lambda: f"the door without a record listens: {site.home.said(NAME)}")  # fmt: skip
        # `taskset` becomes the door: its pid is the door's
        yield Arm(NULL, f"127.0.0.1:{listen}", f"localhost:{port}", auth=site.auth(), pids=lambda: [process.pid])
    finally:
        end(process)


if __name__ == "__main__":
    run.Spooler = NullSpooler  # type: ignore[assignment, misc]
    sys.exit(run.main())
