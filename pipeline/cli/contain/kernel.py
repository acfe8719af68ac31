"""The system calls that Python has no function for: namespaces, mounts, capabilities. Each raises OSError.

The mount calls are those of Linux 5.12: a tree is taken as a handle, made read-only as a whole, and only then put into its
place, so that no name is looked up twice.
"""

import ctypes
import fcntl
import os
import socket
import struct
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h."""

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
"""linux/mount.h, as are the next ones."""

ATTR_RDONLY: Final = 1
ATTR_NOSUID: Final = 2
ATTR_NODEV: Final = 4

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4

_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
"""The same on every machine: they are younger than the common table."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_SECUREBITS: Final = 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SECURE_ALL_LOCKED: Final = 0b11101111
"""noroot, no-setuid-fixup, no-cap-ambient-raise, all four locked (linux/securebits.h): user id 0 is a number like another."""

_CAPABILITY_VERSION_3: Final = 0x20080522
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def _call(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _path(path: str) -> bytes:
    return os.fsencode(path)


def unshare(flags: int) -> None:
    """Be in new namespaces; of the process namespace only the next child is."""
    _call(_LIBC.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    _call(_LIBC.mount(_path(source), _path(target), kind.encode(), ctypes.c_ulong(flags), data.encode()))


def umount(target: str) -> None:
    """Take a mount away; its files live on where they are mounted also."""
    _call(_LIBC.umount2(_path(target), MNT_DETACH))


def remount_read_only(target: str, flags: int) -> None:
    """Nothing is written through this mount any more; `flags` are those that it has and keeps."""
    mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def open_tree(path: str) -> int:
    """A handle of a copy of what is mounted at `path`, with what is mounted below it."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _call(_LIBC.syscall(_SYS_OPEN_TREE, _AT_FDCWD, _path(path), ctypes.c_uint(flags)))


def set_attributes(tree: int, attributes: int) -> None:
    """Restrict all of a tree: ATTR_*."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns_fd
    flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
    _call(_LIBC.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, wanted, ctypes.c_size_t(len(wanted))))


def attach(tree: int, target: str) -> None:
    """Put a tree into its place, and close its handle."""
    try:
        _call(_LIBC.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, _path(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)))
    finally:
        os.close(tree)


def pivot_into(root: str) -> None:
    """Make a mount the root of this mount namespace, and let go of everything that was there before (pivot_root(2), notes)."""
    os.chdir(root)
    _call(_LIBC.pivot_root(b".", b"."))
    _call(_LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")


def die_with_parent(number: int) -> None:
    """Have the kernel send us a signal when our parent ends. Lost when it has already, so look behind this call."""
    _prctl(_PR_SET_PDEATHSIG, number)


def hide_memory() -> None:
    """Nobody of our own user reads this process by /proc or ptrace, or finds its descriptors there."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """/proc/self is ours again: a change of credentials has made it root's."""
    _prctl(_PR_SET_DUMPABLE, 1)


def drop_privileges() -> None:
    """No capability, now or behind any exec, whatever the user id: bounding and ambient sets are empty, the bits locked."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_SECUREBITS, _SECURE_ALL_LOCKED)
    last = int(_read("/proc/sys/kernel/cap_last_cap"))
    for capability in range(last + 1):
        _prctl(_PR_CAPBSET_DROP, capability)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _call(_LIBC.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))


def set_filter(program: bytes) -> None:
    """Put a filter over this process's system calls, and those of all that come from it. Needs `drop_privileges` first."""
    held = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))

    wanted = Program(len(program) // 8, ctypes.cast(held, ctypes.c_void_p))
    none = ctypes.c_ulong(0)
    _call(_LIBC.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(wanted), none, none))


def loopback_up() -> None:
    """The one interface that a new network namespace has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack("16xH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _prctl(option: int, value: int) -> None:
    _call(_LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
