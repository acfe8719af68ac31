"""The containment from without: `python -m pipeline.cli.contain.outside ORDERS`, what `begin` becomes.

It starts the maker of the namespaces and the relay, passes signals on, and ends as the program ends. Signals that somebody
sends it go on to the program; those that a terminal sends reach that by themselves, since it is in the same group of processes.
The program's exit code is its own, 128 and the number where a signal ended the program.
"""

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Final

from pipeline.cli.contain import kernel
from pipeline.cli.contain.why import why_not

START_S: Final = 30.0
"""How long the namespaces may take to be made."""

PASSED_ON: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
WAITED_FOR: Final = (*PASSED_ON, signal.SIGCHLD)
BY_KERNEL: Final = 0x80
"""si_code of a signal that a terminal has made (SI_KERNEL)."""

FAULT: Final = 2
NOT_FOUND: Final = 127
NOT_RUN: Final = 126
"""Exit codes: ours as of any command, and a shell's for a program that is not there, or cannot be executed."""

LOST: Final = 1
"""Exit code when the containment ended without saying how the program did."""

MESSAGE_BYTES_MAX: Final = 4096


class NotMade(Exception):
    """The containment could not be made; says why, in one line."""


def remember(orders: object) -> int:
    """A file in memory that holds something as JSON, at its beginning."""
    made = os.memfd_create("orders")
    with os.fdopen(made, "wb", closefd=False) as file:
        file.write(json.dumps(orders).encode())
    os.lseek(made, 0, os.SEEK_SET)
    return made


def main() -> int:
    """Run the program of the orders; returns its exit code."""
    kernel.hide_memory()
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        orders = json.load(file)
    name = orders["plan"]["command"][0]
    with _Run() as run:
        try:
            run.start(orders["plan"], orders["relay"])
            code = run.follow()
        except NotMade as fault:
            print(f"wardline: --contain: {fault}", file=sys.stderr)
            return FAULT
    if run.absent:
        why = f" {orders['unseen']}" if orders["unseen"] and run.absent == 2 else f": {os.strerror(run.absent).lower()}"
        print(f"wardline: `{name}`{why}", file=sys.stderr)
        return NOT_FOUND if run.absent == 2 else NOT_RUN
    return code


class _Run:
    """The processes of one run. Whatever happens, they are gone behind it."""

    def __init__(self) -> None:
        self.absent = 0
        """Why the program could not be executed (errno); 0 when it was."""
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

    def start(self, plan: dict[str, Any], relay: dict[str, str]) -> None:
        """Make the namespaces and the relay, then let the program go. Raises NotMade saying what does not allow it."""
        written = remember(plan)
        self._maker = _spawn("inside", self._theirs.fileno(), written)
        os.close(written)
        self._theirs.close()
        self._relay = _spawn("relay", self._relays.fileno(), apart=True)
        self._relays.close()
        self._relay_end.send(json.dumps(relay).encode())
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
            got = signal.sigwaitinfo(WAITED_FOR)
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
            raise NotMade(f"the namespaces were not made within {START_S:.0f} s") from fault
        except OSError:
            return "", -1
        handles = array.array("i")
        for _level, _kind, part in rights:
            handles.frombytes(part[: len(part) - len(part) % handles.itemsize])
        return data.decode(errors="replace"), handles[0] if handles else -1


def _spawn(module: str, *handles: int, apart: bool = False) -> "subprocess.Popen[bytes]":
    """A process of ours with a memory and environment of its own; one that is `apart` has no terminal and no pipe of ours."""
    stdio = subprocess.DEVNULL if apart else None
    return subprocess.Popen(
        [sys.executable, "-I", "-m", f"pipeline.cli.contain.{module}", *map(str, handles)], pass_fds=handles,
        env={}, stdin=stdio, stdout=stdio, stderr=stdio, start_new_session=apart, cwd="/" if apart else None,
    )  # fmt: skip


def _fault(text: str) -> NotMade:
    """What the maker said of a step that failed, with the setting that stands against it."""
    try:
        said = json.loads(text)
        return NotMade(why_not(str(said['failed']), int(said['errno']), str(said['path'])))
    except (ValueError, KeyError, TypeError):
        return NotMade("the process that makes the namespaces has ended without a word")


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
