"""What a host tells an egress door: one line of JSON on the door's stdin, and nothing after it.

    python -m enforcers.doors.egress.run --home DIR

A process that has no orders yet has loaded everything and waits for them, however long; it ends when its stdin does.

The door answers in its run file alone: `run/door-N.json` is `starting`, then `ready` as soon as it listens (whatever the board
says: a stale one is refused call by call), `stopping` behind SIGTERM. Exit code 2, with one last line on stderr, is for what an
operator must put right. It shares its host's process group, so it ignores SIGINT, which a terminal sends to both.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from schemas.config import Egress, Enforcer, Issuer


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Everything that a door needs beside its home. No secret is in it.

    The host's configuration is the door's: one that is started again behaves as the one before it, whatever became of the file
    meanwhile.
    """

    host: str
    """The host's name: where the board, the agents and the spools are."""
    name: str
    """The door's own, `door-N`."""
    boot: str
    """16 hex digits: the door's own, of this start."""
    port: int
    """The port to listen on at `egress.listen`, with SO_REUSEPORT: never 0, the host keeps it bound."""
    own: tuple[str, ...]
    """`HOST:PORT` of Kafka, ClickHouse and control, wherever they are: never dialled, whatever policy or configuration say."""
    egress: Egress
    enforcer: Enforcer
    issuers: tuple[Issuer, ...]

    def encode(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_orders(line: bytes) -> Orders:
    """Read what `Orders.encode` made. Raises ValueError for half a line: whoever wrote it is gone."""
    if not line.endswith(b"\n"):
        raise ValueError("the orders have no end")
    said: dict[str, Any] = json.loads(line)
    egress = said["egress"]
    texts = {name: tuple(egress[name]) for name in ("allow_addresses", "dns_servers")}
    return Orders(
        host=said["host"], name=said["name"], boot=said["boot"], port=said["port"], own=tuple(said["own"]),
        egress=Egress(**{**egress, **texts}), enforcer=Enforcer(**said["enforcer"]),
        issuers=tuple(Issuer(**one) for one in said["issuers"]),
    )  # fmt: skip
