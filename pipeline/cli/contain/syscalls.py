"""The filter over system calls (seccomp): what a network namespace does not keep apart, and what no program needs here.

    socket, socketpair     unix, IPv4, IPv6 and netlink; vsock reaches the hypervisor past every network namespace, and there
                           are more such families
    ioctl TIOCSTI          types into the terminal that the user's own shell reads next; TIOCLINUX pastes into it
    io_uring               makes sockets that this filter does not see
    keyctl and its kin     the kernel looks names up for a `dns_resolver` key outside, and keyrings have no namespace
    bpf, perf_event_open   more of the kernel than a program has to reach

The program is classic BPF over struct seccomp_data (linux/seccomp.h): nr at 0, arch at 4, arguments of 8 bytes from 16. System
calls of another architecture than the machine's own (32-bit programs, x32) are not there: their numbers mean something else.
"""

import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.errors import OperatorFault

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_NR: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16
_X32_BIT: Final = 0x40000000

FAMILIES: Final = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""

TERMINAL: Final = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """An architecture: its number in AUDIT_ARCH_* and those of the system calls that are looked at."""

    audit: int
    socket: int
    socketpair: int
    ioctl: int
    absent: tuple[int, ...]
    """ENOSYS: a program then does without. io_uring_setup, io_uring_enter, io_uring_register, keyctl, add_key, request_key."""
    refused: tuple[int, ...]
    """EPERM. bpf, perf_event_open."""


MACHINES: Final[Mapping[str, Machine]] = {
    "x86_64": Machine(
        audit=0xC000003E, socket=41, socketpair=53, ioctl=16, absent=(425, 426, 427, 250, 248, 249), refused=(321, 298)
    ),
    "aarch64": Machine(
        audit=0xC00000B7, socket=198, socketpair=199, ioctl=29, absent=(425, 426, 427, 219, 217, 218), refused=(280, 241)
    ),
}


def program(machine: str = "") -> bytes:
    """The filter, for this machine. Raises OperatorFault for one whose system calls we do not know."""
    name = machine or platform.machine()
    found = MACHINES.get(name)
    if found is None:
        raise OperatorFault(f"--contain: `{name}` is no machine whose system calls are known, {', '.join(MACHINES)} are")
    gone, refused = _ERRNO | errno.ENOSYS, _ERRNO | errno.EPERM
    code = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, found.audit), (_RETURN, 0, 0, gone),
        (_LOAD, 0, 0, _NR), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, gone),
    ]  # fmt: skip
    for numbers, answer in ((found.absent, gone), (found.refused, refused)):
        for number in numbers:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    # an argument is 8 bytes of which the kernel takes 4 here, on these machines the first 4
    for number in (found.socket, found.socketpair):
        code += [(_EQUAL, 0, len(FAMILIES) + 3, number), (_LOAD, 0, 0, _ARGUMENTS)]
        code += [(_EQUAL, len(FAMILIES) - at, 0, family) for at, family in enumerate(FAMILIES)]
        code += [(_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, len(TERMINAL) + 3, found.ioctl), (_LOAD, 0, 0, _ARGUMENTS + 8)]
    code += [(_EQUAL, len(TERMINAL) - at, 0, request) for at, request in enumerate(TERMINAL)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, refused)]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", operation, true, false, value) for operation, true, false, value in code)
