"""What a contained program sees of the file system: a list of what is there, so that everything else is not.

    read only      /usr and its kin, /etc, /opt, and what --ro-bind names        the folders that hold programs
    to write       the working folder, and what --bind names
    of its own     the user's home folder, /tmp, /var/tmp, /dev, /dev/shm        empty, in memory, gone afterwards
    fresh          /proc, of its own processes alone, read only
    not there      /run, /var, /sys, /home and whatever else is not named

Inside what is there, some things are covered: Wardline's home and key files, what in /etc only some may read, and every socket,
since a socket is a way out whatever the network namespace is. A socket that somebody makes in the working folder later is not.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import OperatorFault
from schemas.vocabulary import shown

SYSTEM: Final = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store",
)  # fmt: skip
OWN: Final = ("/tmp", "/var/tmp")
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
NEVER: Final = ("/proc", "/sys", "/dev", "/run", "/var/run")
"""What nobody can ask for: they are made of ways out."""

BROAD: Final = ("/etc", "/usr", "/tmp", "/var", "/home", *NEVER)
"""A folder that holds one of these shows too much, and so does one that holds the user's home folder."""

ENTRIES_MAX: Final = 2_000_000
"""Files in the working folder and what is bound, which are searched for sockets: a few seconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to put in place. `what` is `link`, `read`, `write`, `device`, `own` or `hide`; `to` is where a link points."""

    what: str
    path: str
    to: str = ""


def plan(*, cwd: str, user_home: str, bind: Sequence[str], ro_bind: Sequence[str], hidden: Iterable[Path]) -> list[Step]:
    """What to put where, parents first; every path is real. Raises OperatorFault for what is not there or not to be seen."""
    user_home = os.path.realpath(user_home) if user_home.startswith("/") else ""
    away = [os.path.realpath(path) for path in hidden]
    writable = [_checked("the working folder", cwd, user_home), *(_checked("--bind", path, user_home) for path in bind)]
    readable = [_checked("--ro-bind", path, user_home) for path in ro_bind]
    if not os.path.isdir(writable[0]):
        raise OperatorFault(f"the working folder `{shown(cwd)}` is no folder")
    for path in (*writable, *readable):
        if inside := next((one for one in away if _within(path, one)), None):
            raise OperatorFault(f"`{shown(path)}` lies in `{shown(inside)}`, which no contained program may see")
    steps = [*_system(), *(Step("own", path) for path in OWN), *(Step("device", f"/dev/{name}") for name in DEVICES)]
    if user_home not in ("", "/"):
        steps.append(Step("own", user_home))
    steps += [Step("read", path) for path in readable if path not in writable]
    steps += [Step("write", path) for path in dict.fromkeys(writable)]
    steps.sort(key=lambda step: step.path.count("/"))  # stable, and a parent has fewer
    return steps + [Step("hide", path) for path in sorted(_covered(steps, away))]


def shows(steps: Iterable[Step], path: str) -> bool:
    """Whether a real path is there inside."""
    best = max((step for step in steps if _within(path, step.path)), key=lambda step: len(step.path), default=None)
    return best is not None and best.what in ("read", "write", "device")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _checked(option: str, path: str, user_home: str) -> str:
    real = os.path.realpath(os.path.expanduser(path))
    try:
        mode = os.stat(real).st_mode
    except OSError as fault:
        raise OperatorFault(f"{option}: `{shown(path)}`: {(fault.strerror or str(fault)).lower()}") from fault
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise OperatorFault(f"{option}: `{shown(path)}` is neither a folder nor a file")
    if over := next((one for one in NEVER if _within(real, one)), None):
        raise OperatorFault(f"{option}: `{shown(path)}` lies in `{over}`, which no contained program may see")
    for broad in (*BROAD, user_home):
        if broad and _within(broad, real):
            raise OperatorFault(
                f"{option}: `{shown(path)}` would show all of `{shown(broad)}`; name a folder of the work alone"
            )
    return real


def _system() -> Iterator[Step]:
    for path in SYSTEM:
        if os.path.islink(path):
            yield Step("link", path, os.readlink(path))
        elif os.path.isdir(path):
            yield Step("read", path)


def _covered(steps: Sequence[Step], away: Iterable[str]) -> Iterator[str]:
    """What lies in what is shown and must not be seen."""
    chosen = [step.path for step in steps if step.what in ("read", "write") and step.path not in SYSTEM]
    found = {path for path in away if os.path.exists(path) and shows(steps, path)}
    found.update(path for path in _bound_sockets() if shows(steps, path))
    for path in chosen:
        found.update(_sockets(path))
    found.update(_private("/etc"))
    for path in found:
        if not any(other != path and _within(path, other) for other in found):
            yield path


def _bound_sockets() -> Iterator[str]:
    """The path names of sockets that somebody listens at, in this network namespace."""
    with open("/proc/net/unix", "rb") as file:
        for line in file:
            path = os.fsdecode(line.rstrip(b"\n").split(b" ")[-1])
            if path.startswith("/") and (real := os.path.realpath(path)) and _is_socket(real):
                yield real


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _sockets(top: str) -> Iterator[str]:
    """Every socket below a folder, whoever listens there and in whatever namespace."""
    waiting, left = [top] if os.path.isdir(top) else [], ENTRIES_MAX
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    left -= 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink() and _is_socket(entry.path):
                        yield entry.path
        except OSError:
            continue  # what we cannot enter, a program of ours cannot either
        if left < 0:
            raise OperatorFault(f"`{shown(top)}` has more than {ENTRIES_MAX} files, too many to look for sockets in")


def _private(top: str) -> Iterator[str]:
    """What not every user may read: the program's user may be one who may."""
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        continue
                    mode = entry.stat(follow_symlinks=False).st_mode
                    wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
                    if mode & wanted != wanted:
                        yield entry.path
                    elif stat.S_ISDIR(mode):
                        waiting.append(entry.path)
        except OSError:
            continue
