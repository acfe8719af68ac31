"""What a contained program inherits: its three standard descriptors and nothing else, and of those only what leads nowhere.

A pipe, a file and a terminal are what somebody outside gave it on purpose. A connected socket would be a way out, an open
folder leads past the mounts, and a namespace, a device or a handle of a process is no place to read or write a text.
"""

import os
import socket
import stat
from typing import Final

from schemas.errors import OperatorFault
from schemas.vocabulary import shown

NAMES: Final = ("stdin", "stdout", "stderr")
DEVICES: Final = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)})
"""null, zero, full, random, urandom (Linux, admin-guide/devices)."""


def check_standard() -> None:
    """Raise OperatorFault for a standard descriptor that would lead out; open the null device where there is none."""
    for number, name in enumerate(NAMES):
        try:
            wrong = _wrong(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so this one
            continue
        if wrong:
            raise OperatorFault(f"{name} is {wrong}, which would lead out of the containment; give a pipe or a file")


def _wrong(number: int) -> str:
    """What is wrong with an open descriptor, or nothing. Raises OSError when it is not open."""
    kind = os.fstat(number)
    link = os.readlink(f"/proc/self/fd/{number}")
    if _flags(number) & os.O_PATH:
        return f"a handle of `{shown(link)}`"
    if stat.S_ISFIFO(kind.st_mode) or os.isatty(number):
        return ""
    if stat.S_ISREG(kind.st_mode):
        return "" if link.startswith("/") else f"`{shown(link)}`"  # net:[...], anon_inode:[pidfd]
    if stat.S_ISCHR(kind.st_mode):
        device = (os.major(kind.st_rdev), os.minor(kind.st_rdev))
        return "" if device in DEVICES else f"the device `{shown(link)}`"
    if stat.S_ISDIR(kind.st_mode):
        return f"the folder `{shown(link)}`"
    if stat.S_ISSOCK(kind.st_mode):
        return _wrong_socket(number)
    return f"`{shown(link)}`"


def _wrong_socket(number: int) -> str:
    """A pair of unix sockets without names is a pipe with two ends, as many programs start their children with."""
    with socket.socket(fileno=os.dup(number)) as one:
        if one.family != socket.AF_UNIX:
            return "a network connection"
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "a listening socket"
        try:
            other = one.getpeername()
        except OSError:
            return "an unconnected socket"
        own = one.getsockname()
    name = own or other
    return f"a connection to the socket `{shown(os.fsdecode(name))}`" if name else ""


def _flags(number: int) -> int:
    with open(f"/proc/self/fdinfo/{number}") as file:
        for line in file:
            if line.startswith("flags:"):
                return int(line.split()[1], 8)
    return 0
