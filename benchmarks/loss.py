"""Which calls reached the origin and are in no record? `python -m benchmarks loss`, or `python -m benchmarks.loss [NAME...]`.

    killed     kill -9 in mid-load, several times; for us of the door, of its host, and of both at once
    full       the disk of the log (of the spool) becomes full under load, and has room again at the end
    stalled    nobody takes the log: a pipe that nobody reads; for us a broker that is stopped, until spool and outbox are full,
               then kill -9, then it goes on

Each request has a number of its own. The origin counts the numbers that it was asked for, in shared memory; what it counted is
then looked for in the log, or in the store's `calls`. One that is not there was served and is on no record. Our row must be 0.

It needs mounts of its own, so it runs in a mount namespace (`unshare`); where that cannot be had the column `full` is left out.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.egress.site import HOST, Site
from benchmarks.peers.programs import COMMANDS, Peer, running
from benchmarks.peers.setup import programs
from benchmarks.wire.tools import free_port, have_compiler, load, load_words, origin

OURS: Final = "wardline"
CONNECTIONS: Final = 32
KILLS: Final = 4
KILL_AFTER_S: Final = 0.7
KILLED_S: Final = 1.2
FULL_S: Final = 2.0
STALLED_S: Final = 3.0
STALLS_MAX: Final = 10
"""So often, until our spool and outbox are full."""

LOG_DISK: Final = "256k"
SPOOL_DISK: Final = "8m"
LIMITS: Final = """[enforcer]
segment_bytes = 65536
spool_bytes = 524288
spool_reserved_bytes = 131072
outbox_bytes = 1048576
"""
"""Small, so that spool and outbox are full within the run, and the door must refuse."""
INSIDE: Final = "WARDLINE_LOSS_INSIDE"


@dataclass(slots=True)
class Cell:
    """One program under one trouble: each run's calls that are on no record, of how many that were served."""

    missing: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    note: str = ""

    def add(self, served: set[int], recorded: set[int]) -> None:
        self.missing.append(len(served - recorded))
        self.served.append(len(served))

    def __str__(self) -> str:
        if not self.missing:
            return self.note or "not measured"
        runs = ", ".join(f"{missing:,}/{served:,}" for missing, served in zip(self.missing, self.served, strict=True))
        return f"{runs}{f' ({self.note})' if self.note else ''}"


def main(argv: list[str]) -> int:
    """Measure and print; returns 1 when one of our calls is on no record."""
    if INSIDE not in os.environ and (inside := _namespace()) is not None:
        words = [*inside, sys.executable, "-m", "benchmarks.loss", *argv]
        return subprocess.run(words, env=os.environ | {INSIDE: "1"}, check=False).returncode
    if not have_compiler():
        print("no C compiler here, which the two ends of the wire need")
        return 0
    wanted = [word for word in argv if not word.startswith("-")]
    have, lacks = programs()
    names = [name for name in COMMANDS if name in have and (not wanted or name in wanted)]
    for name, why in lacks.items():
        print(f"{name}: skipped, {why}")
    good = True
    print("calls that the origin served and that are on no record, of those served, in each run", flush=True)
    for name in names:
        for trouble, run in (("killed", _peer_killed), ("full", _peer_full), ("stalled", _peer_stalled)):
            _print(name, trouble, _try(run, name, have[name]))
    if not wanted or OURS in wanted:
        for trouble, ours in (("killed", _our_killed), ("full", _our_full), ("stalled", _our_stalled)):
            with tempfile.TemporaryDirectory(prefix="wardline-loss-") as folder:
                cell = Cell()
                ours(Path(folder), cell)
                _print(OURS, trouble, cell)
                good = good and not any(cell.missing)
    if not good:
        print("MISSED: a call of ours was served and is on no record, limit is 0")
    return 0 if good else 1


def _namespace() -> list[str] | None:
    """What runs a command in a mount namespace of its own, where that can be had."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    with contextlib.suppress(OSError):
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return [*words, "--"]
    return None


def _try(run: Callable[[str, Path, Path, Cell], None], name: str, program: Path) -> Cell:
    cell = Cell()
    with tempfile.TemporaryDirectory(prefix="wardline-loss-") as folder:
        try:
            run(name, program, Path(folder), cell)
        except (OSError, AssertionError) as fault:
            cell.note = f"not measured: {str(fault).strip().splitlines()[-1][:120]}"
    return cell


def _print(name: str, trouble: str, cell: Cell) -> None:
    limit = "  at most 0" if name == OURS else ""
    largest = f"{max(cell.missing):>7,}" if cell.missing else "      -"
    print(f"{trouble:<8} {name:<10} {largest}   {cell}{limit}", flush=True)


# -- what was served, what is recorded -------------------------------------------------------------------------------


def _served(file: Path) -> set[int]:
    counted = file.read_bytes()
    return {at for at, many in enumerate(counted) if many} if any(counted) else set()


def _logged(text: bytes) -> set[int]:
    return {int(number) for number in re.findall(rb"/id/(\d+)", text)}


@contextlib.contextmanager
def _loaded(port: int, to: str, seconds: float, auth: str = "") -> Iterator["subprocess.Popen[bytes]"]:
    """A generator that runs beside the block, to its end."""
    words = load_words(to=to, origin=f"localhost:{port}", connections=CONNECTIONS, seconds=seconds, warm=0, ids=1, auth=auth)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as generator:
        try:
            yield generator
            generator.wait(seconds + 20)
        finally:
            generator.kill()


@contextlib.contextmanager
def _disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own. Raises AssertionError where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, "no disk can be mounted here"
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


# -- the peers -------------------------------------------------------------------------------------------------------


def _kill(peer: Peer) -> None:
    for pid in peer.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _peer_killed(name: str, program: Path, folder: Path, cell: Cell) -> None:
    for turn in range(KILLS):
        port, served = free_port(), folder / f"served-{turn}"
        with origin(port, served=served), running(name, program, folder / f"{name}-{turn}", port) as peer:
            with _loaded(port, f"127.0.0.1:{peer.port}", KILLED_S):
                time.sleep(KILL_AFTER_S)
                _kill(peer)
            cell.add(_served(served), _logged(peer.log.read_bytes()))


def _peer_full(name: str, program: Path, folder: Path, cell: Cell) -> None:
    port, served = free_port(), folder / "served"
    with _disk(folder / "disk", LOG_DISK) as disk, origin(port, served=served):
        with running(name, program, folder / name, port, disk / "access.log") as peer:
            with _loaded(port, f"127.0.0.1:{peer.port}", FULL_S):
                pass
            ended = peer.process.poll()
        cell.add(_served(served), _logged(peer.log.read_bytes()))
    cell.note = "went on" if ended is None else f"ended by itself with {ended}"


def _peer_stalled(name: str, program: Path, folder: Path, cell: Cell) -> None:
    port, served, log = free_port(), folder / "served", folder / "pipe" / "access.log"
    log.parent.mkdir()
    os.mkfifo(log, 0o666)
    log.chmod(0o666)
    # held open, so that whoever opens it to write is not made to wait for a reader, and nothing in it is lost with the writer
    handle = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    parts: list[bytes] = []
    try:
        with origin(port, served=served), running(name, program, folder / name, port, log) as peer:
            with _loaded(port, f"127.0.0.1:{peer.port}", STALLED_S):
                pass
            _kill(peer)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(handle, 1 << 16):
                parts.append(part)
    finally:
        os.close(handle)
    assert parts, "it writes nothing into a pipe"
    cell.add(_served(served), _logged(b"".join(parts)))


# -- ours ------------------------------------------------------------------------------------------------------------


def _our_killed(folder: Path, cell: Cell) -> None:
    port, served = free_port(), folder / "served"
    with origin(port, served=served), Site(folder / "home", [port]) as site:
        for turn, names in enumerate((("door-1",), (HOST,), ("door-1", HOST), ("door-1",))):
            site.door()
            first = 1 + turn * 1_000_000
            words = load_words(to=site.proxy, origin=f"localhost:{port}", connections=CONNECTIONS, seconds=KILLED_S + 2, warm=0,
                               ids=first, auth=site.auth())  # fmt: skip
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as generator:
                time.sleep(KILL_AFTER_S)
                pids = [site.home.pid(name) for name in names]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                generator.wait(30)
            site.home.wait_ready(HOST)
            site.quiet()
            ours = {one for one in _served(served) if first <= one < first + 1_000_000}
            cell.add(ours, site.stored_ids())
    cell.note = "door; host; both; door"


def _our_full(folder: Path, cell: Cell) -> None:
    port, served = free_port(), folder / "served"
    home = folder / "home"
    home.mkdir(mode=0o700)
    with _disk(home / "hosts", SPOOL_DISK) as disk:
        disk.chmod(0o700)
        with origin(port, served=served), Site(home, [port], config=LIMITS) as site:
            to = site.proxy
            filler = threading.Timer(0.3, _fill, [disk / "ballast"])
            filler.start()
            found = load(to=to, origin=f"localhost:{port}", connections=CONNECTIONS, seconds=FULL_S, warm=0, ids=1,
                         auth=site.auth())  # fmt: skip
            filler.join()
            (disk / "ballast").unlink()
            time.sleep(1)
            after = load(to=to, origin=f"localhost:{port}", seconds=0.5, warm=0, ids=1_000_001, auth=site.auth(), rate=200)
            site.quiet()
            cell.add(_served(served), site.stored_ids())
    cell.note = f"{_refused(found):,} answered 503; afterwards {after['good']} of {after['turns']} served"


def _our_stalled(folder: Path, cell: Cell) -> None:
    port, served = free_port(), folder / "served"
    with origin(port, served=served), Site(folder / "home", [port], config=LIMITS) as site:
        to, first = site.proxy, 1
        site.home.sigstop("broker")
        try:
            for _ in range(STALLS_MAX):
                found = load(to=to, origin=f"localhost:{port}", connections=CONNECTIONS, seconds=STALLED_S, warm=0, ids=first,
                             auth=site.auth())  # fmt: skip
                first = int(found["last_id"])
                if "503" in found["statuses"]:
                    break
            for pid in [site.home.pid("door-1"), site.home.pid(HOST)]:
                os.kill(pid, signal.SIGKILL)
        finally:
            site.home.sigcont("broker")
        site.home.wait_ready(HOST)
        site.quiet()
        cell.add(_served(served), site.stored_ids())
    cell.note = f"{_refused(found):,} answered 503"


def _refused(found: dict[str, Any]) -> int:
    """How many were answered 503. Raises AssertionError for none: then the spool was not full, and nothing is shown."""
    refused = int(found["statuses"].get("503", 0))
    assert refused, f"the spool was not full: {found}"
    return refused


def _fill(ballast: Path) -> None:
    """Leave not one block, for as long as the file is there."""
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(handle, bytes(size))
    finally:
        os.close(handle)


if __name__ == "__main__":
    if not shutil.which("taskset"):
        sys.exit("benchmarks: `taskset` of util-linux is missing")
    sys.exit(main(sys.argv[1:]))
