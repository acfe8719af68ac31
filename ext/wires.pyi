import asyncio
import socket as sockets
from collections.abc import Callable
from typing import Any

class Wire(asyncio.Transport):
    """One connection: a stream socket that does not block. Made by `Wires`. A transport in all but its class."""

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""

    def unsent(self) -> int:
        """Bytes that wait here or in the kernel until the peer's kernel has them; its end counts as one."""

    def reset(self) -> None:
        """Close at once, so that the peer sees a break and no end: what the kernel still has is dropped too."""

    def give_up(self) -> None:
        """Nobody waits any more for it to be made; nobody is told."""

class Listener:
    def close(self) -> None:
        """Let nobody in any more; who waits at the door is sent away by the kernel."""

class Wires:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def __len__(self) -> int:
        """Open connections and listeners, and connections that are being made."""

    def listen(self, socket: sockets.socket, factory: Callable[[], Any], backlog: int) -> Listener:
        """Let connections in: `factory` makes a protocol for each. The socket is the listener's. Raises OSError."""

    def connect(
        self, address: str, port: int, factory: Callable[[], Any], told: Callable[[Any, Exception | None], None]
    ) -> Wire:
        """Connect to an IP address. `told(protocol, None)` follows `connection_made`; else `told(None, fault)`, an OSError or
        what `factory` or `connection_made` raised; never before this returns. Raises OSError where that is known at once."""

    def close(self) -> None:
        """Close whatever is open; nobody is told."""
