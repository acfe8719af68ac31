"""A door whose spool is on a disk that becomes full while it serves.

`python -m tests.support.fulldoor FOLDER`, in a mount namespace.

Exit code 0 when nothing went out without a record, nothing died, and it served again by itself when there was room.
"""

import subprocess
import sys
from pathlib import Path

from schemas.process import private_dir, read_run_file
from tests.support.egressload import Load, settle
from tests.support.fulldisk import fill
from tests.support.governed import Governed

NAMES = ("broker", "store", "control", "work-1", "enforce-1", "door-1")


def main(folder: Path) -> None:
    """Mount, serve, fill, be refused, make room, serve, count."""
    disk = private_dir(private_dir(folder / "home") / "hosts")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(disk)], check=True)
    with Governed(folder, enforcer="segment_bytes = 65536", names=("www.example.test",)) as site:

        def pids() -> dict[str, object]:
            return {name: (read_run_file(site.wardline.home.run_file(name)) or {}).get("pid") for name in NAMES}

        before = pids()
        with Load(site) as load:
            load.until(200, 200)
            fill(disk / "ballast")
            load.until(503, 50, recorded=False)
            (disk / "ballast").unlink()
            load.until(200, 200)
        settle(site, load)
        assert pids() == before, "somebody has died"
        assert not load.count(0), load.summary()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
