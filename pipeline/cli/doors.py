"""Which doors of a home are there to be used, by what they say of themselves in their run files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.process import read_run_file
from schemas.vocabulary import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A living door of this home."""

    name: str
    host: str
    port: int
    socket: Path


def find_door(home: Home, name: str | None) -> Door:
    """The door of that name, or the first that is ready. Raises OperatorFault, PeerFault while there is none."""
    found = list(ready_doors(home))
    if name is None and found:
        return found[0]
    for door in found:
        if door.name == name:
            return door
    if not found:
        raise PeerFault(f"no door of `{home.root}` is ready: `wardline up` starts them")
    raise OperatorFault(f"--door: `{shown(str(name))}` is not ready here, {', '.join(door.name for door in found)} are")


def ready_doors(home: Home) -> Iterator[Door]:
    """Every living door that says it is ready, `door-2` before `door-10`."""
    for name, said in living_doors(home):
        if said.get("state") == "ready" and (door := _door(home, name, said)):
            yield door


def living_doors(home: Home) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each living door says of itself, `door-2` before `door-10`."""
    for path in sorted(home.run.glob("door-*.json"), key=lambda path: (len(path.name), path.name)):
        said = read_run_file(path)
        if said is not None and said["alive"]:
            yield path.stem, said


def _door(home: Home, name: str, said: dict[str, Any]) -> Door | None:
    """None for a door of another kind: a replay's listens nowhere."""
    host, _, port = str(said.get("address") or "").rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        return None
    plain = host.removeprefix("[").removesuffix("]")
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Door(name=name, host=anywhere.get(plain, plain), port=int(port), socket=home.door_socket(name))
