"""Syslog (RFC 5424) over TLS (RFC 5425): one connection, one frame an event.

Syslog has no acknowledgement. So a batch counts as taken when the other side's kernel has acknowledged every byte of it (the
socket's queue is empty), and what was written in the last RESEND_S on a connection that then broke is written again on the
next: a receiver that died may have had it in its buffers only. What it loses on its own disk, nobody can know here.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import select
import socket
import ssl
import termios
import time
from collections import deque
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Final

from pipeline.core.ocsf import Alert
from pipeline.core.siem.feeder import Batch
from pipeline.core.siem.framing import syslog_event, syslog_frames
from pipeline.shells.siem.sinks.tls import context_of
from schemas.config import Siem
from schemas.errors import OperatorFault, PeerFault
from schemas.siem import host_of

CONNECT_S: Final = 5.0
SEND_S: Final = 10.0
"""How long a batch may take to be acknowledged by the other side's kernel."""

RESEND_S: Final = 10.0
RESEND_BYTES_MAX: Final = 4 << 20
CLOSE_S: Final = 1.0
LOOK_S: Final = 0.005


class SyslogSink:
    """One receiver."""

    def __init__(self, table: Siem, thread: Executor) -> None:
        """Raises OperatorFault for a certificate that cannot be loaded."""
        self._address, self._port, _ = host_of(table)
        named = f"[{self._address}]" if ":" in self._address else self._address
        self.where = f"tls://{named}:{self._port}"
        self._context = context_of(table)
        self._thread = thread
        self._host = socket.gethostname()
        self._socket: ssl.SSLSocket | None = None
        self._lately: deque[tuple[float, bytes]] = deque()
        """What was written on this connection in the last RESEND_S."""

    def pack(self, alert: Alert) -> bytes:
        """Small enough for a frame of 8 KiB."""
        return syslog_event(alert)

    async def take(self, batch: Batch) -> str:
        """Write a batch. Raises PeerFault, and OperatorFault for a certificate that is not accepted."""
        stamps = [f"{datetime.fromtimestamp(one.time_us / 10**6, UTC):%Y-%m-%dT%H:%M:%S.%f}Z" for one in batch.alerts]
        data = syslog_frames(batch.alerts, batch.events, host=self._host, pid=os.getpid(), stamps=stamps)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._send, data)

    def _send(self, data: bytes) -> str:
        try:
            connected = self._connected()
            again = b"".join(one for _, one in self._lately) if connected is not self._socket else b""
            self._socket = connected
            self._write(connected, again + data)
            if again:
                self._lately = deque([(time.monotonic(), again)])
        except ssl.SSLCertVerificationError as fault:
            self._drop()
            raise OperatorFault(f"{self.where}: its certificate is not accepted: {fault.verify_message}") from fault
        except OSError as fault:
            self._drop()
            why = " ".join(str(fault.strerror or fault).split()).lower() or type(fault).__name__
            raise PeerFault(f"{self.where} does not take it: {why}") from fault
        now = time.monotonic()
        self._lately.append((now, data))
        while self._lately and (self._lately[0][0] < now - RESEND_S or self._held() > RESEND_BYTES_MAX):
            self._lately.popleft()
        return f"{len(data)} bytes, acknowledged by the other side's kernel ({connected.version()})"

    def _held(self) -> int:
        return sum(len(one) for _, one in self._lately)

    def _connected(self) -> ssl.SSLSocket:
        """The connection, or a new one where the other side has ended it."""
        if self._socket is not None:
            if not _ended(self._socket):
                return self._socket
            self._drop()
        plain = socket.create_connection((self._address, self._port), timeout=CONNECT_S)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made = self._context.wrap_socket(plain, server_hostname=self._address)
        except BaseException:
            plain.close()
            raise
        made.settimeout(SEND_S)
        return made

    def _write(self, connected: ssl.SSLSocket, data: bytes) -> None:
        """Write all of it and wait until it has arrived. Raises OSError, TimeoutError among them."""
        connected.sendall(data)
        deadline = time.monotonic() + SEND_S
        left = array.array("i", [0])
        while True:
            fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, left)
            if not left[0]:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left[0]} bytes are not acknowledged in {SEND_S:.0f} s")
            time.sleep(LOOK_S)
        if _ended(connected):
            raise ConnectionResetError("the other side has ended the connection")

    def _drop(self) -> None:
        """The connection is broken: what was written on it lately goes again."""
        gone, self._socket = self._socket, None
        if gone is not None:
            gone.close()

    async def close(self) -> None:
        """Say that nothing follows, and wait a moment for the other side to have read it all."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    def _close(self) -> None:
        ending, self._socket = self._socket, None
        if ending is not None:
            with contextlib.suppress(OSError, ValueError):
                ending.settimeout(CLOSE_S)
                ending.unwrap().close()
            ending.close()


def _ended(connected: ssl.SSLSocket) -> bool:
    """Whether the other side has ended the connection. What it says otherwise (a new session's ticket) is read and dropped."""
    try:
        while connected.pending() or select.select([connected], [], [], 0)[0]:
            before = connected.gettimeout()
            connected.settimeout(0)
            try:
                if not connected.recv(4096):
                    return True
            except ssl.SSLWantReadError:
                return False
            finally:
                connected.settimeout(before)
    except (OSError, ValueError):
        return True
    return False
