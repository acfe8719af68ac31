"""The containment from without: judge, start, pass signals on, end as the program ends.

Signals that somebody sends to `wardline run` go on to the program; those that a terminal sends reach it by themselves, since it
is in the same group of processes. Its exit code is ours, 128 and the number where a signal ended it.
"""

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pipeline.cli.contain import handles, syscalls, view
from pipeline.cli.contain.why import why_not
from pipeline.cli.proxyenv import Proxy, governed
from schemas.config import Config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.vocabulary import shown

HOST: Final = "127.0.0.1"
PORT: Final = 17480
"""Where the relay listens in the new network, in which every port is free."""

START_S: Final = 30.0
"""How long the namespaces may take to be made."""

PASSED_ON: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BY_KERNEL: Final = 0x80
"""si_code of a signal that a terminal has made (SI_KERNEL)."""

NOT_FOUND: Final = 127
NOT_RUN: Final = 126
LOST: Final = 1
"""Exit code when the containment ended without saying how the program did."""

MESSAGE_BYTES_MAX: Final = 4096


def run(
    home: Home, config: Config, command: Sequence[str], *, user: str, secret: str, door: str, bind: Sequence[str],
    ro_bind: Sequence[str], umask: int,
) -> int:  # fmt: skip
    """Run a program in a containment; returns its exit code. Raises OperatorFault for what is not allowed or would leak."""
    handles.check_standard()
    cwd = os.getcwd()
    hidden = [home.root, *_key_files(config)]
    steps = view.plan(cwd=cwd, user_home=os.environ.get("HOME", ""), bind=bind, ro_bind=ro_bind, hidden=hidden)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    plan = {
        "parent": os.getpid(), "host": HOST, "port": PORT, "cwd": cwd, "command": list(command), "umask": umask,
        "env": governed(os.environ, Proxy(host=HOST, port=PORT), contained=True),
        "filter": syscalls.program().hex(), "ignored": _ignored(), "blocked": sorted(int(number) for number in before),
        "steps": [[step.what, step.path, step.to] for step in steps],
    }  # fmt: skip
    orders = {"home": str(home.root), "door": door, "user": user, "secret": secret}
    with _Run(plan, orders) as parts:
        parts.start()
        code = parts.follow()
    if parts.absent:
        print(f"wardline: {_absent(command[0], parts.absent, steps)}", file=sys.stderr)
        return NOT_FOUND if parts.absent == 2 else NOT_RUN
    return code


def _key_files(config: Config) -> list[Path]:
    """The files with secrets that the configuration names, wherever they lie."""
    found = []
    for section in (config.kafka, config.clickhouse, config.control):
        for one in fields(section):
            if one.name.endswith(("password_file", "key_file")) and (name := getattr(section, one.name)):
                found.append(Path(name))
    return found


def _ignored() -> list[int]:
    """The signals that whoever called us has us ignore; Python adds two of its own, which a program does not expect."""
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    own = (signal.SIGPIPE, signal.SIGXFSZ)
    return [number for number in range(1, signal.NSIG) if mask >> (number - 1) & 1 and number not in own]


def _absent(name: str, number: int, steps: Sequence[view.Step]) -> str:
    """Why there is no such program inside, where there is one outside."""
    found = shutil.which(name)
    if found is None or number != 2:
        return f"`{shown(name)}`: {os.strerror(number).lower()}"
    for path in (os.path.abspath(found), os.path.realpath(found)):
        if not view.shows(steps, path):
            return f"`{shown(name)}` is `{shown(path)}`, which is not there inside; give --ro-bind with its folder"
    return f"`{shown(name)}`: its interpreter is not there inside; give --ro-bind with its folder"


class _Run:
    """The processes of one run. Whatever happens, they are gone behind it."""

    def __init__(self, plan: dict[str, Any], orders: dict[str, str]) -> None:
        self.absent = 0
        self._plan = plan
        self._orders = orders
        self._channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._relay_end, self._relays = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._program = -1
        self._maker: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._maker, self._relay):
            if process is not None:
                process.kill()  # the maker's end is process 1's, and that one's is everybody's
                process.wait()
        for one in (self._channel, self._theirs, self._relay_end, self._relays):
            one.close()

    def start(self) -> None:
        """Make the namespaces and the relay, then let the program go. Raises OperatorFault saying what does not allow it."""
        plan = os.memfd_create("plan")
        with os.fdopen(plan, "wb", closefd=False) as file:
            file.write(json.dumps(self._plan).encode())
        os.lseek(plan, 0, os.SEEK_SET)
        numbers = [str(self._theirs.fileno()), str(plan)]
        self._maker = _spawn("inside", numbers, (self._theirs.fileno(), plan))
        os.close(plan)
        self._theirs.close()
        self._relay = _spawn("relay", [str(self._relays.fileno())], (self._relays.fileno(),), apart=True)
        self._relays.close()
        self._relay_end.send(json.dumps(self._orders).encode())
        self._channel.settimeout(START_S)
        deadline = time.monotonic() + START_S
        for wanted in ("net", "built"):
            text, handle = self._hear()
            if text != wanted:
                raise _fault(text)
            if handle >= 0:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle]))]
                self._relay_end.sendmsg([b"net"], rights)
                os.close(handle)
            self._channel.settimeout(max(0.1, deadline - time.monotonic()))
        self._channel.settimeout(None)
        self._channel.send(b"go")

    def follow(self) -> int:
        """Pass signals on until the program ends; returns its exit code."""
        text, self._program = self._hear()
        if text == "started":
            text, _ = self._hear()
        if text.startswith("absent "):
            self.absent = int(text.split()[1])
            return NOT_FOUND
        if text != "running":
            raise _fault(text)
        told = False
        while True:
            got = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
            if got.si_signo != signal.SIGCHLD:
                if got.si_code != BY_KERNEL:
                    self._pass_on(got.si_signo)
            elif self._maker is not None and self._maker.poll() is not None:
                text, _ = self._hear()
                return _code(int(text.split()[1])) if text.startswith("ended ") else LOST
            elif self._relay is not None and self._relay.poll() is not None and not told:
                told = True
                print("wardline: the relay has ended, nothing goes out of the containment any more", file=sys.stderr)

    def _pass_on(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(self._program, number)

    def _hear(self) -> tuple[str, int]:
        """One message and the descriptor that came with it, or -1; an empty message when there is nobody any more."""
        try:
            data, rights, _, _ = self._channel.recvmsg(MESSAGE_BYTES_MAX, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as fault:
            raise OperatorFault(f"--contain: the namespaces were not made within {START_S:.0f} s") from fault
        except OSError:
            return "", -1
        handles = array.array("i")
        for _level, _kind, part in rights:
            handles.frombytes(part[: len(part) - len(part) % handles.itemsize])
        return data.decode(errors="replace"), handles[0] if handles else -1


def _spawn(module: str, numbers: list[str], handles: tuple[int, ...], *, apart: bool = False) -> "subprocess.Popen[bytes]":
    """A process of ours with a memory and environment of its own; one that is `apart` has no terminal and no pipe of ours."""
    stdio = subprocess.DEVNULL if apart else None
    return subprocess.Popen(
        [sys.executable, "-I", "-m", f"pipeline.cli.contain.{module}", *numbers], pass_fds=handles, env={}, stdin=stdio,
        stdout=stdio, stderr=stdio, start_new_session=apart, cwd="/" if apart else None,
    )  # fmt: skip


def _fault(text: str) -> OperatorFault:
    """What the maker said of a step that failed, with the setting that stands against it."""
    try:
        said = json.loads(text)
        return OperatorFault(f"--contain: {why_not(str(said['failed']), int(said['errno']), str(said['path']))}")
    except (ValueError, KeyError, TypeError):
        return OperatorFault("--contain: the process that makes the namespaces has ended without a word")


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
