"""A name server for tests: real UDP and TCP, answers by script, and counts what it is asked."""

import contextlib
import socket
import socketserver
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass(frozen=True, slots=True)
class Answer:
    """What one lookup of a name is told: of its addresses, those of the family that it asks for."""

    addresses: tuple[str, ...] = ()
    ttl: int = 60
    aliases: tuple[str, ...] = ()
    """Names that lead from the one that was asked for to the one that has the addresses."""
    rcode: int = dns.rcode.NOERROR
    cut: bool = False
    """Over UDP only the head, so that the client must ask again by TCP."""
    silent: tuple[str, ...] = ()
    """Kinds (`A`, `AAAA`) about which nothing is ever said."""


def say(*addresses: str, **more: Any) -> Answer:
    return Answer(addresses, **more)


@dataclass(slots=True)
class Script:
    """What is told, in order; the last answer stays."""

    answers: list[Answer]
    asked: Counter[str] = field(default_factory=Counter)

    def next(self, kind: str) -> Answer:
        at = min(self.asked[kind], len(self.answers) - 1)
        self.asked[kind] += 1
        return self.answers[at]


    def last(self, kind: str) -> Answer:
        return self.answers[min(self.asked[kind], len(self.answers)) - 1]


def _bound(handler: type[socketserver.BaseRequestHandler]) -> tuple[socket.socket, socketserver.TCPServer]:
    """One port that both protocols have free."""
    while True:
        tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        tcp.daemon_threads = True
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.server_address)
        except OSError:
            udp.close()
            tcp.server_close()
        else:
            return udp, tcp


class NameServer:
    """Answers on one port of 127.0.0.1, by UDP and TCP. A name without a script does not exist."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.seen: Counter[tuple[str, str]] = Counter()
        """How often each (name, kind) was asked for by UDP."""
        self.by_tcp: Counter[tuple[str, str]] = Counter()
        server = self

        class OverTcp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, struct.error):
                    (size,) = struct.unpack("!H", self.request.recv(2, socket.MSG_WAITALL))
                    reply = server.reply(self.request.recv(size, socket.MSG_WAITALL), tcp=True)
                    if reply is not None:
                        self.request.sendall(struct.pack("!H", len(reply)) + reply)

        self._udp, self._tcp = _bound(OverTcp)
        self.port: int = self._udp.getsockname()[1]
        self._threads = [
            threading.Thread(target=self._serve_udp, daemon=True),
            threading.Thread(target=self._tcp.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
        ]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lookups(self, name: str) -> int:
        """How often a name was looked up: each lookup asks for A and AAAA once."""
        return max(self.seen[name, "A"], self.seen[name, "AAAA"])

    def __setitem__(self, name: str, answers: Answer | list[Answer]) -> None:
        self.scripts[name] = Script(answers if isinstance(answers, list) else [answers])

    def __enter__(self) -> "NameServer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._tcp.shutdown()
        self._tcp.server_close()
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._udp.close()
        for thread in self._threads:
            thread.join(5)

    def _serve_udp(self) -> None:
        while True:
            try:
                data, peer = self._udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            reply = self.reply(data, tcp=False)
            if reply is not None:
                with contextlib.suppress(OSError):
                    self._udp.sendto(reply, peer)

    def reply(self, data: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        name, kind = query.question[0].name, dns.rdatatype.to_text(query.question[0].rdtype)
        text = name.to_text(omit_final_dot=True).lower()
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        (self.by_tcp if tcp else self.seen)[text, kind] += 1
        script = self.scripts.get(text)
        if script is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response.to_wire()
        answer = script.last(kind) if tcp else script.next(kind)  # by TCP it is the second half of a lookup that was cut
        if kind in answer.silent:
            return None
        response.set_rcode(dns.rcode.Rcode(answer.rcode))
        if answer.cut and not tcp:
            response.flags |= dns.flags.TC
            return response.to_wire()
        for alias in answer.aliases:
            response.answer.append(dns.rrset.from_text(name, answer.ttl, "IN", "CNAME", f"{alias}."))
            name = dns.name.from_text(alias)
        fits = [one for one in answer.addresses if (":" in one) == (kind == "AAAA")]
        if fits:
            response.answer.append(dns.rrset.from_text(name, answer.ttl, "IN", kind, *fits))
        return response.to_wire()
