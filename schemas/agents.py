"""The agents that a host hands to its doors, and what proves each: one file, written whole before the board gets the epoch.

    {"form":"wardline-agents-1","epoch":12,"agents":[
    {"name":"researcher","owner":"alice","secret":"scrypt$...","spiffe":[],"subs":[["https://idp.example","r-17"]]},
    {"name":"writer",...}
    ]}

One line an agent, in the order of their names: a reader that knows a line need not read it again, so that one change among
thousands costs little. The file has hashes of secrets, never a secret; it is for its owner alone, as all of a home is.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.canonical import canonical, canonical_text
from schemas.control import Entry
from schemas.errors import OperatorFault
from schemas.limits import AGENTS_MAX, NAME_BYTES_MAX

FORM: Final = "wardline-agents-1"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FIELDS: Final = {"name", "owner", "secret", "spiffe", "subs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent as control names it."""

    name: str
    owner: str
    secret: str
    """`scrypt$N$R$P$SALT$HASH`."""
    subs: tuple[tuple[str, str], ...] = ()
    """(issuer, subject) of tokens that are the agent's."""
    spiffe: tuple[str, ...] = ()

    def line(self) -> bytes:
        """Its line of the file."""
        return canonical({
            "name": self.name, "owner": self.owner, "secret": self.secret, "subs": [list(pair) for pair in self.subs],
            "spiffe": list(self.spiffe),
        })  # fmt: skip


def read_agent(name: str, value: Mapping[str, Any] | None) -> Agent | None:
    """The agent that an entry `agent/NAME` of the control log says; None where it says none: nobody is known by it."""
    said = value or {}
    owner, secret, subs, spiffe = said.get("owner"), said.get("secret"), said.get("subs"), said.get("spiffe")
    fits = (
        isinstance(owner, str) and isinstance(secret, str) and isinstance(subs, list) and isinstance(spiffe, list)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair)) for pair in subs)
        and all(map(_is_text, spiffe))
    )  # fmt: skip
    if not fits or not name or _CONTROL.search(name) or len(name.encode()) > NAME_BYTES_MAX:
        return None
    return Agent(name=name, owner=str(owner), secret=str(secret), subs=tuple((pair[0], pair[1]) for pair in subs or ()),
                 spiffe=tuple(spiffe or ()))  # fmt: skip


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and not _CONTROL.search(value)


class Roll:
    """What a host knows of agents as it follows the log, ready to be written: the bytes of each line are made once."""

    def __init__(self) -> None:
        self._lines: dict[str, bytes] = {}

    def clear(self) -> None:
        """The whole state is read again."""
        self._lines.clear()

    def take(self, entry: Entry) -> None:
        """An entry `agent/NAME`; its removal and one that says no agent take the name out."""
        agent = read_agent(entry.name, entry.value)
        if agent is None:
            self._lines.pop(entry.name, None)
        else:
            self._lines[entry.name] = agent.line()

    def __len__(self) -> int:
        return len(self._lines)

    def encode(self, epoch: int) -> bytes:
        """The file's bytes, as of an epoch of control."""
        return _file((self._lines[name] for name in sorted(self._lines)), epoch)


def encode(agents: Iterable[Agent], epoch: int) -> bytes:
    """The file's bytes, as of an epoch of control."""
    return _file((agent.line() for agent in sorted(agents, key=lambda agent: agent.name)), epoch)


def _file(lines: Iterable[bytes], epoch: int) -> bytes:
    head = f'{{"form":{canonical_text(FORM)},"epoch":{epoch},"agents":[\n'.encode()
    body = b",\n".join(lines)
    return head + body + (b"\n]}\n" if body else b"]}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """What a door knows of agents. The zero value knows nobody."""

    epoch: int = 0
    """Of control, when the file was written. A later one that changed no agent leaves the file as it is."""
    by_name: Mapping[str, Agent] = field(default_factory=dict)
    by_sub: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(issuer, subject) -> the name of the one agent whose it is. What two agents have is nobody's."""
    lines: Mapping[bytes, Agent] = field(default_factory=dict)


def parse(data: bytes, name: str, before: Agents | None = None) -> Agents:
    """Read the file; the agents whose lines `before` has are taken from there.

    Raises OperatorFault that begins with `name` for a file that is not whole, in form or in order.
    """
    head, _, rest = data.partition(b"\n")
    try:
        said = json.loads(head + b"]}")
        if said.keys() != {"form", "epoch", "agents"} or said["form"] != FORM or type(said["epoch"]) is not int:
            raise ValueError("head")
        body, end, behind = rest.rpartition(b"]}\n")
        if not end or behind or (body and not body.endswith(b"\n")):
            raise ValueError("end")
        raw = body[:-1].split(b",\n") if body else []
        if len(raw) > AGENTS_MAX:
            raise OperatorFault(f"{name}: has {len(raw)} agents, limit is {AGENTS_MAX}")
        known = before.lines if before is not None else {}
        lines = {line: known.get(line) or _agent(line) for line in raw}
        by_name = {agent.name: agent for agent in lines.values()}
        if len(by_name) != len(raw):
            raise ValueError("a name twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise OperatorFault(f"{name}: is damaged, so no agent is known; its host writes it when control is heard") from fault
    return Agents(epoch=said["epoch"], by_name=by_name, by_sub=_subs(lines.values()), lines=lines)


def _agent(line: bytes) -> Agent:
    said = json.loads(line)
    if said.keys() != _FIELDS or not isinstance(said["name"], str):
        raise ValueError("fields")
    agent = read_agent(said["name"], said)
    if agent is None or agent.line() != line:
        raise ValueError("no agent")
    return agent


def _subs(agents: Iterable[Agent]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    shared: set[tuple[str, str]] = set()
    for agent in agents:
        for pair in agent.subs:
            if found.setdefault(pair, agent.name) != agent.name:
                shared.add(pair)
    for pair in shared:
        del found[pair]
    return found
