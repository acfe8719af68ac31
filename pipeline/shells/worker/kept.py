"""The last registry, on the disk: what a worker believes until it has read control's log."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.errors import OperatorFault
from schemas.process import write_atomic

FORM: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What control has said up to an epoch. Keys are raw Ed25519 public keys."""

    epoch: int
    counter: int
    keys: Mapping[bytes, bytes]
    """Of control, by their ids."""
    hosts: Mapping[str, bytes]
    former: Mapping[str, bytes]
    """Of hosts that were removed."""
    exceptions: Mapping[str, tuple[str, str]]
    """Name -> (detector, subject) of findings that are called false."""


def read_kept(path: Path) -> Kept | None:
    """None where there is none yet. Raises OperatorFault for one that cannot be read."""
    try:
        said = json.loads(path.read_bytes())
        if said.pop("form") != FORM:
            raise ValueError("form")
        keys = {bytes.fromhex(name): bytes.fromhex(public) for name, public in said["control"].items()}
        hosts, former = (
            {str(name): bytes.fromhex(public) for name, public in said[part].items()} for part in ("hosts", "former")
        )
        for public in (*keys.values(), *hosts.values(), *former.values()):
            Ed25519PublicKey.from_public_bytes(public)
        false = said.get("exceptions", {})  # a worker of an earlier version knew of none
        exceptions = {str(name): (str(detector), str(subject)) for name, (detector, subject) in false.items()}
        return Kept(epoch=int(said["epoch"]), counter=int(said["counter"]), keys=keys, hosts=hosts, former=former,
                    exceptions=exceptions)  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        said_so = "is no registry; remove it, and this worker believes what control says now"
        raise OperatorFault(f"{path}: {said_so}") from fault


def write_kept(path: Path, kept: Kept, *, sync: bool) -> None:
    """Take the place of what was kept; with `sync` it is on the disk when this returns."""
    said: dict[str, Any] = {
        "form": FORM, "epoch": kept.epoch, "counter": kept.counter, "control": _hex(kept.keys, bytes.hex),
        "hosts": _hex(kept.hosts, str), "former": _hex(kept.former, str), "exceptions": dict(kept.exceptions),
    }  # fmt: skip
    write_atomic(path, json.dumps(said).encode(), sync=sync)


def _hex(keys: Mapping[Any, bytes], name: Callable[[Any], str]) -> dict[str, str]:
    return {name(key): public.hex() for key, public in keys.items()}
