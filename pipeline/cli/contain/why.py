"""Why a containment cannot be made here: which setting of the system stands against it, and what its administrator can do."""

import errno
import os
from pathlib import Path
from typing import Final

DOCS: Final = "see docs/contain.md"


def why_not(what: str, number: int, path: str) -> str:
    """One line for a step of `inside` that failed with an error number, on a file where one was named."""
    if what in ("user namespace", "namespaces"):
        return _namespaces(what, number)
    if _restricted():
        return _apparmor()
    if what == "/proc" and number == errno.EPERM:
        return f"a /proc of its own cannot be mounted: parts of this one are covered, as container engines do; {DOCS}"
    if number == errno.ENOSYS:
        return f"`{what}`: this kernel lacks the mount calls of Linux 5.12"
    return f"`{what}` failed: {os.strerror(number).lower()}{f' (`{path}`)' if path else ''}"


def _namespaces(what: str, number: int) -> str:
    for kind in ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup"):
        if _setting(f"user/max_{kind}_namespaces") == 0:
            return f"user.max_{kind}_namespaces is 0 here, so no {kind} namespace can be made: set it with sysctl; {DOCS}"
    if _setting("kernel/unprivileged_userns_clone") == 0 and os.geteuid() != 0:
        return f"kernel.unprivileged_userns_clone is 0: only root makes user namespaces until sysctl sets it to 1; {DOCS}"
    if _restricted():
        return _apparmor()
    if number == errno.ENOSPC:
        return f"the limit of namespaces is reached (user.max_*_namespaces, or 32 inside each other); {DOCS}"
    if _filtered():
        return f"a seccomp filter is over this process, as container engines set one, and refuses the {what}; {DOCS}"
    return f"the {what} cannot be made: {os.strerror(number).lower()}; {DOCS}"


def _apparmor() -> str:
    return f"kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor needs a profile with `userns` for this Python; {DOCS}"


def _restricted() -> bool:
    return _setting("kernel/apparmor_restrict_unprivileged_userns") == 1 and os.geteuid() != 0


def _setting(name: str) -> int | None:
    """A number in /proc/sys, None where this kernel has none."""
    try:
        return int((Path("/proc/sys") / name).read_text())
    except (OSError, ValueError):
        return None


def _filtered() -> bool:
    return "\nSeccomp:\t2\n" in Path("/proc/self/status").read_text()
