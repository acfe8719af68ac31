"""Web logs that nobody here wrote, as recorded calls: `python -m benchmarks.weblogs SRC OUT.jsonl`, one request a line.

SRC is the folder that holds `rita` and `aktaion`, packed as they come. Three logs, each a source of its own:

    rita       `valid_tsv/http.log.gz`: a day of 13 hosts in January 2018, with scripted beacons among it (Zeek)
    benign     `benign1http.log`: some people reading news in June 2015 (Zeek)
    exploits   182 `.webgateway` files: visits to exploit kits, January to June 2014 (McAfee Web Gateway)

What a line says, and where it comes from:

    agent       the client's address, with the log's name in front: `rita-10.55.100.109`
    chain       `User::"NAME"` -> agent, where the log names a user (exploits); else the agent alone
    client      the client's address
    action      `http:METHOD`; a method that is no token, or none, is left out with its line
    resource    `Host::"NAME:PORT"`, of the Host that was asked for; the server's address where that is no name
    status, bytes_in, bytes_out    as logged. Zeek counts bodies alone, the gateway whole messages
    session     exploits: the name of the file, which is one visit

Lines are in the order of their times. Of a URL nothing else is kept: a recorded call has no path and no query.
"""

import gzip
import ipaddress
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from schemas.errors import AgentFault
from schemas.vocabulary import agent_uid, host_uid, user_uid

RITA: Final = ("rita/http-and-proxy.tar.gz", "test_data/valid_tsv/http.log.gz")
AKTAION: Final = "aktaion/exploit-2014h1-and-benign.tar.gz"
BENIGN: Final = (AKTAION, "data/broData/benignTraffic/broBenigns/Benigns/Benign1/benign1http.log")
EXPLOITS: Final = (AKTAION, ".webgateway")

_GATEWAY: Final = re.compile(
    r'\[(?P<time>[^]]+)\] "(?P<user>[^"]*)" (?P<client>\S+) (?P<server>\S+) (?P<port>\d+) (?P<status>\d+) \S+ '
    r'"(?P<method>\S+) (?P<url>\S+)[^"]*" (?:"(?:[^"]|"[^" ]+")*" ){3}(?P<sent>\d+) (?P<received>\d+) '
)
_AUTHORITY: Final = re.compile(r"[a-z]+://([^/?#]*)", re.IGNORECASE)
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{1,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of a web log."""

    log: str
    time: float
    """Seconds since 1970."""
    client: str
    server: str
    """The address that was asked."""
    host: str
    """As the client named it; perhaps with a port, perhaps `-`."""
    port: int
    method: str
    uri: str
    status: int
    sent: int
    received: int
    user: str = ""
    session: str = ""


def main(argv: list[str]) -> int:
    """Write the requests of every log under `argv[0]` to `argv[1]`; returns the exit code."""
    if len(argv) != 2:
        print("usage: python -m benchmarks.weblogs SRC OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    try:
        found = [line for request in requests(source) if (line := as_call(request)) is not None]
    except (OSError, ValueError, KeyError, tarfile.TarError) as fault:
        print(f"{source}: {str(fault) or type(fault).__name__}", file=sys.stderr)
        return 2
    found.sort(key=lambda line: float(line["time"]))
    with target.open("w", encoding="utf-8", newline="\n") as out:
        for line in found:
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{target}: {len(found)} calls")
    return 0


def requests(source: Path) -> Iterator[Request]:
    """Every request of the three logs."""
    yield from rita(source)
    yield from benign(source)
    yield from exploits(source)


def rita(source: Path) -> Iterator[Request]:
    """The day with beacons in it."""
    for _, data in _members(source, *RITA):
        yield from zeek("rita", gzip.decompress(data))


def benign(source: Path) -> Iterator[Request]:
    """People who read news."""
    for _, data in _members(source, *BENIGN):
        yield from zeek("benign", data)


def exploits(source: Path) -> Iterator[Request]:
    """Visits to exploit kits."""
    for name, data in _members(source, *EXPLOITS):
        yield from gateway(name.rpartition("/")[2].removesuffix(EXPLOITS[1]), data)


def _members(source: Path, archive: str, ending: str) -> Iterator[tuple[str, bytes]]:
    found = []
    with tarfile.open(source / archive) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(ending):
                file = tar.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    if not found:
        raise ValueError(f"{archive} has no `{ending}`")
    yield from sorted(found)


def zeek(log: str, data: bytes) -> Iterator[Request]:
    """The lines of a Zeek `http.log` in tab-separated form."""
    names: list[str] = []
    for line in data.decode(errors="replace").splitlines():
        if line.startswith("#fields"):
            names = line.split("\t")[1:]
        elif not line.startswith("#"):
            said = dict(zip(names, line.split("\t"), strict=True))
            yield Request(
                log=log, time=float(said["ts"]), client=said["id.orig_h"], server=said["id.resp_h"], host=said["host"],
                port=int(said["id.resp_p"]), method=said["method"], uri=said["uri"], status=_number(said["status_code"]),
                sent=_number(said["request_body_len"]), received=_number(said["response_body_len"]),
            )  # fmt: skip


def gateway(name: str, data: bytes) -> Iterator[Request]:
    """The lines of a McAfee Web Gateway's access log; the URL of a CONNECT is HOST:PORT."""
    for line in data.decode(errors="replace").splitlines():
        if ' "  " ' in line:  # about no request: it has no address, method or size
            continue
        said = _GATEWAY.match(line)
        if said is None:
            raise ValueError(f"{name}: `{line[:80]}` is no line of a gateway")
        authority = _AUTHORITY.match(said["url"])
        host = authority[1] if authority else said["url"]
        yield Request(
            log="exploits", time=datetime.strptime(said["time"], "%d/%b/%Y:%H:%M:%S %z").timestamp(), client=said["client"],
            server=said["server"], host=host, port=443 if said["url"].lower().startswith("https:") else 80,
            method=said["method"], uri=said["url"][len(authority[0]) :] if authority else "", status=int(said["status"]),
            sent=int(said["sent"]), received=int(said["received"]), user=said["user"], session=name,
        )  # fmt: skip


def _number(text: str) -> int:
    return 0 if text == "-" else int(text)


def as_call(request: Request) -> dict[str, Any] | None:
    """A request as a line of a recorded-calls file; None for one that no call can be: it has no method."""
    if not _METHOD.fullmatch(request.method):
        return None
    agent = f"{request.log}-{request.client}"
    line: dict[str, Any] = {
        "time": round(request.time, 6), "agent": agent, "client": str(ipaddress.ip_address(request.client)),
        "action": f"http:{request.method}", "resource": resource_of(request), "status": request.status,
        "bytes_out": request.sent, "bytes_in": request.received,
    }  # fmt: skip
    if request.user not in ("", "-"):
        line["chain"] = [user_uid(request.user), agent_uid(agent)]
    return line | ({"session": request.session} if request.session else {})


def resource_of(request: Request) -> str:
    """Where it went, by the name that was asked for, else by the server's address."""
    name, port = request.host, request.port
    head, colon, digits = name.rpartition(":")
    if colon and digits.isascii() and digits.isdecimal() and ":" not in head.strip("[]"):
        name, port = head, int(digits)
    for one in (name, request.server):
        try:
            return host_uid(one, port)
        except AgentFault:
            continue
    raise ValueError(f"`{request.host}` and `{request.server}` are no hosts")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
