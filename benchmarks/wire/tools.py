"""Compile and run the two ends, and look at what somebody between them uses.

With two processors or more, who is measured has the first and both ends share the second, as everything that is compared must
have the same. The processor's time is the kernel's count (utime + stime of /proc/PID/stat) of a process and all below it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parents[1] / ".cache"
TICK_US: Final = 1_000_000 / os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
PROCESSORS: Final = sorted(os.sched_getaffinity(0))
MEASURED: Final = {PROCESSORS[0]}
ENDS: Final = {PROCESSORS[1]} if len(PROCESSORS) > 1 else {PROCESSORS[0]}


def tool(name: str) -> Path:
    """The program `name`, compiled anew when its source is newer."""
    made = CACHE / "wire" / name
    sources = [HERE / f"{name}.c", HERE / "common.h"]
    if not made.exists() or made.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        made.parent.mkdir(parents=True, exist_ok=True)
        beside = made.with_suffix(f".{os.getpid()}")
        subprocess.run([os.environ.get("CC", "gcc"), "-O2", "-Wall", "-o", str(beside), str(sources[0])], check=True)
        beside.rename(made)
    return made


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on(processors: set[int]) -> list[str]:
    """What goes before a command line so that it, and all it starts, runs there."""
    return ["taskset", "-c", ",".join(map(str, sorted(processors)))]


def pin(pids: Iterable[int], processors: set[int]) -> None:
    """Bind every thread of these processes."""
    for pid in pids:
        for task in tasks(pid):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, processors)


@contextlib.contextmanager
def origin(*ports: int, served: Path | None = None) -> Iterator[int]:
    """An origin on these ports of 127.0.0.1 and ::1; gives its pid."""
    words = [*on(ENDS), str(tool("origin")), *map(str, ports), *([f"served={served}"] if served else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", f"the origin does not listen on {ports}"
            yield process.pid
        finally:
            process.kill()


def load_words(**how: object) -> list[str]:
    """The command line of a generator; `load.c` has the words."""
    return [*on(ENDS), str(tool("load")), *(f"{name}={value}" for name, value in how.items() if value not in ("", None))]


def load(**how: object) -> dict[str, Any]:
    """Run one generator to its end; returns what it counted."""
    done = subprocess.run(load_words(**how), stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- what a process has used -----------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(path.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def processor_us(pids: Iterable[int]) -> float:
    """Microseconds of a processor that these have used since they began."""
    used = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
    return used * TICK_US


def memory(pids: Iterable[int]) -> int:
    """Bytes of these that are in memory."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * PAGE


def tasks(pid: int) -> list[int]:
    """Its threads."""
    with contextlib.suppress(OSError):
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return []


# -- ending what we began --------------------------------------------------------------------------------------------


def end(process: "subprocess.Popen[Any]", seconds: float = 5) -> None:
    """End a process that we started in a session of its own, and what it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def have_compiler() -> bool:
    """Whether the two ends can be compiled here."""
    return shutil.which(os.environ.get("CC", "gcc")) is not None
