"""The namespaces from within: `python -m pipeline.cli.contain.inside CHANNEL PLAN`, two descriptors of `outside`.

    the maker      leaves the user, network, mount, process, IPC, host name and cgroup namespaces, and makes the relay's socket
    process 1      puts the file system together, gives every privilege away, starts the program, buries orphans
    the program    has descriptors 0 to 2, the environment of the plan, and the signals as its user left them

Messages on the channel, one datagram each: `net` (with the relay's listening socket), `built`, then waits for `go`; `started`
(with a handle of the program's process), `running` or `absent NUMBER` (it cannot be executed); `ended STATUS`; `failed` with
the step, the error's number and the path. When the channel's other end is gone so is whoever wanted this, and process 1 ends:
the kernel then ends every process of its namespace.
"""

import array
import contextlib
import ctypes  # noqa: F401 - behind the pivot no module can be found any more
import json
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

from pipeline.cli.contain import kernel

SEPARATE: Final = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)  # fmt: skip
ROOT: Final = "/tmp"
"""Where the new root is put together; what was there is under it and goes with the old root."""

PARTS: Final = ".parts"
"""The folder of the new root that holds what is writable and in memory, one file system for all of it."""

IGNORED: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The terminal sends them to the program itself, and `outside` passes on what it gets: they are none of ours."""


class Failed(Exception):
    """A step that did not work; its error is the cause."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Name what is being done, for whoever must find out why it is not allowed."""
    try:
        yield
    except OSError as fault:
        raise Failed(what) from fault


class Channel:
    """The connection to `outside`."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        os.set_inheritable(number, False)

    def say(self, text: str, *handles: int) -> None:
        """Send one message, with descriptors. Nobody there is no reason to stop: see `gone`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))] if handles else []
        with contextlib.suppress(OSError):
            self._socket.sendmsg([text.encode(errors="surrogateescape")], rights)

    def wait(self) -> bool:
        """Wait for `go`; False when there is nobody any more."""
        try:
            return self._socket.recv(64) == b"go"
        except OSError:
            return False

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def gone(self) -> bool:
        """Whether the other end is closed; called when there is something to be read, and nothing but the end ever is."""
        return not self.wait()

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def main() -> NoReturn:
    """The maker."""
    channel = Channel(int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "rb") as file:
        plan = json.load(file)
    try:
        _make(channel, plan)
    except Failed as fault:
        why = fault.__cause__
        assert isinstance(why, OSError)
        channel.say(json.dumps({"failed": str(fault), "errno": why.errno, "path": why.filename or ""}))
    os._exit(1)


def _make(channel: Channel, plan: Mapping[str, Any]) -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)  # for the folders of the new root
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != plan["parent"]:
        os._exit(1)
    uid, gid = os.geteuid(), os.getegid()
    with step("user namespace"):
        if uid == 0:
            os.setgroups([])  # an ordinary user cannot, and keeps the groups that they have outside
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.show_memory()
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with step("namespaces"):
        kernel.unshare(SEPARATE)
    kernel.die_with_parent(signal.SIGKILL)  # the change of credentials has cleared it
    if os.getppid() != plan["parent"]:
        os._exit(1)
    with step("network"):
        kernel.loopback_up()
        with socket.create_server((plan["host"], plan["port"]), backlog=128) as listener:
            channel.say("net", listener.fileno())
    child = os.fork()
    if child == 0:
        try:
            _be_first(channel, plan)
        except Failed as fault:
            why = fault.__cause__
            assert isinstance(why, OSError)
            channel.say(json.dumps({"failed": str(fault), "errno": why.errno, "path": why.filename or ""}))
        finally:
            os._exit(1)
    channel.close()
    _quiet()
    os.waitpid(child, 0)
    os._exit(0)


def _quiet() -> None:
    """Let go of the standard descriptors: a pipe ends when the program has closed it."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


# -- process 1 -----------------------------------------------------------------------------------------------------------


def _be_first(channel: Channel, plan: Mapping[str, Any]) -> None:
    kernel.die_with_parent(signal.SIGKILL)
    kernel.hide_memory()
    _put_together(plan["steps"])
    with step("working folder"):
        os.chdir(plan["cwd"])
    with step("privileges"):
        kernel.drop_privileges()
        kernel.hide_memory()
        kernel.set_filter(bytes.fromhex(plan["filter"]))
    channel.say("built")
    if not channel.wait():
        os._exit(1)  # also when our parent had ended before it could be our alarm
    waking, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    bad, say_bad = os.pipe2(os.O_CLOEXEC)
    program = os.fork()
    if program == 0:
        _become(plan, say_bad)
    os.close(say_bad)
    _quiet()
    channel.say("started", os.pidfd_open(program))
    said = os.read(bad, 16)  # nothing: an exec that worked has closed the other end
    channel.say(f"absent {said.decode()}" if said else "running")
    os.close(bad)
    _bury(channel, waking, program)


def _bury(channel: Channel, waking: int, program: int) -> NoReturn:
    """Wait for every process, until the program ends or nobody wants it any more."""
    while True:
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == program:
                    channel.say(f"ended {found[1]}")
                    os._exit(0)
        except ChildProcessError:
            os._exit(1)
        readable, _, _ = select.select([waking, channel.fileno()], [], [])
        if waking in readable:
            os.read(waking, 4096)
        if channel.fileno() in readable and channel.gone():
            os._exit(1)


def _become(plan: Mapping[str, Any], say_bad: int) -> NoReturn:
    """The program, with nothing of ours but its environment."""
    try:
        left = {int(number) for number in plan["ignored"]}
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_IGN if number in left else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [int(number) for number in plan["blocked"]])
        os.umask(plan["umask"])
        if say_bad != 3:
            os.dup2(say_bad, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.execvpe(plan["command"][0], plan["command"], plan["env"])
    except OSError as fault:
        os.write(3, str(fault.errno).encode())
    finally:
        os._exit(127)


# -- the file system -----------------------------------------------------------------------------------------------------


def _put_together(steps: list[list[str]]) -> None:
    """Take every tree in hand while its name still means what it meant outside, then build the root and turn to it."""
    trees: dict[tuple[str, str], int] = {}
    with step("private mounts"):
        kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    for what, path, _ in steps:
        if what in ("read", "write", "device"):
            with step(f"{what} {path}"):
                trees[what, path] = _take(path, what)
    with step("cover"):
        null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    with step("root"):
        kernel.mount("tmpfs", ROOT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
        os.mkdir(f"{ROOT}/{PARTS}", 0o700)
        kernel.mount("tmpfs", f"{ROOT}/{PARTS}", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=50%")
        for name in ("dev", "proc", "run", "var"):
            os.mkdir(f"{ROOT}/{name}", 0o755)
        os.symlink("/run", f"{ROOT}/var/run")
    for what, path, to in steps:
        with step(f"{what} {path}"):
            match what:
                case "link":
                    os.symlink(to, ROOT + path)
                case "own":
                    _own(path)
                case "hide":
                    _hide(ROOT + path, null)
                case _:
                    tree = trees.pop((what, path))
                    _place(ROOT + path, folder=stat.S_ISDIR(os.fstat(tree).st_mode))
                    kernel.attach(tree, ROOT + path)
    os.close(null)
    _devices()
    with step("/proc"):
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("proc", f"{ROOT}/proc", "proc", flags)
        # no namespace in this one: in a user namespace of its own the program would be the one that mounts
        with open(f"{ROOT}/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        # user id 0 may write most of it without a capability, `kernel.core_pattern` with it
        kernel.remount_read_only(f"{ROOT}/proc", flags)
    with step("pivot"):
        kernel.umount(f"{ROOT}/{PARTS}")
        os.rmdir(f"{ROOT}/{PARTS}")
        kernel.pivot_into(ROOT)
        kernel.remount_read_only("/", kernel.MS_NOSUID | kernel.MS_NODEV)


def _take(path: str, what: str) -> int:
    tree = kernel.open_tree(path)
    attributes = kernel.ATTR_NOSUID
    if what != "device":
        attributes |= kernel.ATTR_NODEV
    if what == "read":
        attributes |= kernel.ATTR_RDONLY
    kernel.set_attributes(tree, attributes)
    return tree


def _place(path: str, *, folder: bool) -> None:
    """Make a place to mount at, where there is none."""
    os.makedirs(path if folder else os.path.dirname(path), 0o755, exist_ok=True)
    if not folder and not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _own(path: str) -> None:
    """A folder in memory, for this run alone."""
    part = f"{ROOT}/{PARTS}/{len(os.listdir(f'{ROOT}/{PARTS}'))}"
    os.mkdir(part)
    os.chmod(part, 0o1777 if path.endswith(("tmp", "shm")) else 0o700)
    _place(ROOT + path, folder=True)
    kernel.attach(kernel.open_tree(part), ROOT + path)


def _hide(path: str, null: int) -> None:
    """Cover a folder with an empty one, anything else with a device that cannot be opened."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # it is gone, or lies in what is covered already
    if stat.S_ISDIR(mode):
        kernel.mount("tmpfs", path, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "mode=555,size=4k")
    else:
        tree = kernel.open_tree(f"/proc/self/fd/{null}")
        kernel.set_attributes(tree, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
        kernel.attach(tree, path)


def _devices() -> None:
    """Terminals and shared memory of its own, and the names of descriptors."""
    with step("/dev"):
        os.mkdir(f"{ROOT}/dev/pts", 0o755)
        options = "newinstance,ptmxmode=0666,mode=620"
        kernel.mount("devpts", f"{ROOT}/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, options)
        os.symlink("pts/ptmx", f"{ROOT}/dev/ptmx")
        _own("/dev/shm")
        os.symlink("/proc/self/fd", f"{ROOT}/dev/fd")
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.symlink(f"/proc/self/fd/{number}", f"{ROOT}/dev/{name}")


if __name__ == "__main__":
    main()
