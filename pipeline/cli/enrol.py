"""`wardline enforcer` and `wardline worker`: who may publish, on this machine and on others.

An enrolment file takes one name to another machine: its own private key, the control keys that it believes, where the broker
is, and for an enforcer the key of the queries' hashes, so that one query has one hash wherever it was made. `wardline enforce
--enrol FILE` and `wardline work --enrol FILE` put it into place there; a later start finds it and changes nothing.
"""

import argparse
import contextlib
import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.cli.applied import standings
from pipeline.cli.common import Commands, add_group, add_kafka, clock, config_of, home_of, table
from pipeline.shells.controlclient import Control, Unsettled, name_of
from schemas.config import Config, Kafka, load_config
from schemas.control import key_id_of
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.keys import (
    QUERY_KEY_BYTES,
    loose_mode,
    parse_private,
    parse_public,
    pinned,
    private_pem,
    public_pem,
    query_key,
    raw_public,
)
from schemas.process import private_dir, write_atomic
from schemas.vocabulary import shown

FORM: Final = "wardline-enrolment-1"
FILE_BYTES_MAX: Final = 64 << 10
ROLES: Final = {"enforcer": "hosts", "worker": "workers"}
"""What a command calls a role, and what its folders of keys are called."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OTHERS: Final = ("broker", "control", "door", "store", "up")
"""First words of the names that other processes of a home have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What one process on another machine needs to be one of ours."""

    role: str
    name: str
    key: Ed25519PrivateKey
    control: dict[str, bytes]
    """Key id -> raw public key."""
    kafka: Kafka
    query: bytes = b""
    """What an enforcer's doors key the hashes of queries with; a worker has none."""

    def encode(self) -> bytes:
        """The file."""
        said = {
            "form": FORM, "role": self.role, "name": self.name, "key": private_pem(self.key).decode(),
            "control": {key_id: public_pem(raw).decode() for key_id, raw in self.control.items()}, "kafka": asdict(self.kafka),
            "query": self.query.hex(),
        }  # fmt: skip
        return json.dumps(said, indent=2).encode() + b"\n"


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `enforcer` and `worker`, with `add`, `list` and `remove` each."""
    for role in ROLES:
        inner, where = add_group(commands, common, role, f"{role}s that may publish")
        text = f"let one more {role} publish, and write its enrolment file"
        add = inner.add_parser("add", parents=[where], help=text, allow_abbrev=False)
        add.add_argument("--out", metavar="FILE", help="the enrolment file (default: NAME.enrol in the current folder)")
        add_kafka(add)
        listing = inner.add_parser("list", parents=[where], help="list them", allow_abbrev=False)
        listing.add_argument("--json", action="store_true", help="for programs")
        text = "what it publishes from now on is refused"
        remove = inner.add_parser("remove", parents=[where], help=text, allow_abbrev=False)
        for named in (add, remove):
            named.add_argument("name", metavar="NAME", help=f"the {role}")
        add.set_defaults(run=run_add, role=role)
        listing.set_defaults(run=run_enforcers if role == "enforcer" else run_workers)
        remove.set_defaults(run=run_remove, role=role)


def check_name(name: str, role: str) -> str:
    """Refuse what cannot be the name of a file, or is that of another process."""
    if not NAME.fullmatch(name):
        raise OperatorFault(f"`{shown(name)}` is no name of a host or worker: letters, digits, `.`, `_` and `-`, 64 at most")
    word = name.partition("-")[0]
    if word in OTHERS or word == ("work" if role == "enforcer" else "enforce"):
        raise OperatorFault(f"`{name}` is the name of a process that is no {role}")
    return name


def run_add(args: argparse.Namespace) -> int:
    """`wardline enforcer add` and `wardline worker add`."""
    config = config_of(args, home := home_of(args))
    name = check_name(args.name, args.role)
    if not config.kafka.servers:
        raise OperatorFault("an enrolment names a kafka that the other machine can reach: give --kafka HOST:PORT")
    control = Control(home, config)
    keys = {name_of(entry): bytes.fromhex(entry["value"]["public"]) for entry in control.live("key")}
    key = Ed25519PrivateKey.generate()
    path = Path(args.out or f"{name}.enrol")
    query = query_key(home) if args.role == "enforcer" else b""
    data = Enrolment(role=args.role, name=name, key=key, control=keys, kafka=config.kafka, query=query).encode()
    # before the change: where this process ends in between, there is a file whose key nobody believes
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as fault:
        raise OperatorFault(f"{path}: is there already, and may be the only copy of a key") from fault
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        change = control.change(f"{args.role}-add", name=name, key=raw_public(key.public_key()).hex())
    except Unsettled:
        raise  # it may be in force: the file stays
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    print(f"added {args.role} `{name}` as epoch {change.epoch}; {path} holds its private key:")
    print(f"  take it to the other machine, mode 0600, and run `wardline {_command(args.role)} --enrol {path.name}` there")
    return 0


def _command(role: str) -> str:
    return "enforce" if role == "enforcer" else "work"


def run_remove(args: argparse.Namespace) -> int:
    """`wardline enforcer remove` and `wardline worker remove`."""
    control = Control(home := home_of(args), config_of(args, home))
    change = control.change(f"{args.role}-remove", name=args.name)
    later = "its later frames are dead letters" if args.role == "enforcer" else "no host believes its frontiers any more"
    print(f"removed {args.role} `{args.name}` as epoch {change.epoch}: {later}")
    return 0


def run_enforcers(args: argparse.Namespace) -> int:
    """`wardline enforcer list`: who they are, and how far each is."""
    control = Control(home := home_of(args), config_of(args, home))
    now = control.ask("/status")
    seen = {host["host"]: host for host in control.ask("/acks")["hosts"] if host["seen_s"] is not None}
    found = [_enforcer(entry, seen.get(name_of(entry))) for entry in control.live("enforcer")]
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        (one["name"], one["state"], _behind(one["epoch"], int(now["epoch"])), _ago(one["seen_s"]),
         "-" if one["lag_records"] is None else f"{one['lag_records']:,}", str(one["doors"]), one["why"])
        for one in found
    ]  # fmt: skip
    head = ("NAME", "STATE", "LAST EPOCH", "LAST SEEN", "LAG (RECORDS)", "DOORS", "")
    print(table(head, rows) if rows else "there is no enforcer")
    return 0


def _enforcer(entry: dict[str, Any], host: dict[str, Any] | None) -> dict[str, Any]:
    said: dict[str, Any] = host or dict.fromkeys(("epoch", "seen_s", "lag_records")) | {"state": "never seen", "why": ""}
    doors = standings(host, {}) if host and host["doors"] else []
    return {
        "name": name_of(entry), "key": entry["value"]["key"], "added": entry["time_ns"] / 1e9, "by": entry["actor"],
        "state": said["state"], "why": said["why"], "epoch": min([door.epoch for door in doors], default=said["epoch"]),
        "seen_s": said["seen_s"], "lag_records": said["lag_records"], "doors": len(doors),
    }  # fmt: skip


def _behind(epoch: int | None, now: int) -> str:
    if epoch is None:
        return "-"
    return f"{epoch} ({now - epoch} behind)" if epoch < now else str(epoch)


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s ago"


def run_workers(args: argparse.Namespace) -> int:
    """`wardline worker list`."""
    control = Control(home := home_of(args), config_of(args, home))
    found = [
        {"name": name_of(entry), "key": entry["value"]["key"], "added": entry["time_ns"] / 1e9, "by": entry["actor"]}
        for entry in control.live("worker")
    ]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        rows = [(one["name"], one["key"][:16], clock(one["added"]), one["by"]) for one in found]
        print(table(("NAME", "KEY", "ADDED", "BY"), rows) if rows else "there is no worker")
    return 0


# -- on the other machine ------------------------------------------------------------------------------------------------


def read(path: Path, role: str) -> Enrolment:
    """Read an enrolment file for a process of one role. Raises OperatorFault."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as fault:
        raise OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}") from fault
    if wrong := loose_mode(path):
        raise OperatorFault(wrong)
    try:
        said = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
        if not isinstance(said, dict) or said.get("form") != FORM:
            raise ValueError("form")
        name, own, pem = said["name"], said["role"], said["key"]
        if not all(isinstance(text, str) for text in (name, own, pem)):
            raise ValueError("texts")
        if own not in ROLES:
            raise ValueError("role")
        kafka = Kafka(**said["kafka"])
        for one in fields(Kafka):
            if type(getattr(kafka, one.name)) is not type(one.default):
                raise ValueError(one.name)
        control = {str(key_id): parse_public(pem.encode()) for key_id, pem in said["control"].items()}
        if not control or any(key_id_of(raw).hex() != key_id for key_id, raw in control.items()):
            raise ValueError("control")
        query = bytes.fromhex(said["query"])
        if len(query) != (QUERY_KEY_BYTES if own == "enforcer" else 0):
            raise ValueError("query")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise OperatorFault(f"{path}: is no enrolment file of this version") from fault
    if own != role:
        raise OperatorFault(f"{path}: enrols a {own}: run `wardline {_command(own)} --enrol` with it")
    key = parse_private(pem.encode(), path)
    return Enrolment(role=role, name=check_name(name, role), key=key, control=control, kafka=kafka, query=query)


def install(home: Home, path: Path, role: str, servers: str | None) -> str:
    """Put an enrolment into a home, or find it there; returns the name. Each file is whole, so a crash costs another start.

    `servers` is what the command line says of the broker, which may have another address here. Raises OperatorFault when the
    home has another key of that name, other control keys, or a configuration that does not fit.
    """
    enrolment = read(path, role)
    folder = ROLES[role]
    known = pinned(home.trusted("control"))
    if known and not known.keys() & enrolment.control.keys():
        raise OperatorFault(f"{path}: is of another control than the one that {home.trusted('control')} pins")
    key_file = home.private_key(folder, enrolment.name)
    pem = private_pem(enrolment.key)
    if not key_file.exists():
        write_atomic(private_dir(key_file.parent) / key_file.name, pem)
    elif parse_private(key_file.read_bytes(), key_file).private_bytes_raw() != enrolment.key.private_bytes_raw():
        raise OperatorFault(f"{key_file}: is another key than that of {path}; remove the one that is wrong")
    if enrolment.query and (not home.query_key.exists() or home.query_key.read_bytes() != enrolment.query):
        # the one that a home makes for itself hashes like nobody else's, so it gives way
        write_atomic(private_dir(home.query_key.parent) / home.query_key.name, enrolment.query)
    for key_id, raw in {} if known else enrolment.control.items():
        write_atomic(private_dir(home.trusted("control")) / f"{key_id}.pub", public_pem(raw))
    load_config(home.config)  # what is there must be right before anything is added to it
    text = home.config.read_text() if home.config.exists() else ""
    if "kafka" not in tomllib.loads(text):
        write_atomic(home.config, (f"{text.rstrip()}\n\n" if text.strip() else "").encode() + _toml(enrolment.kafka).encode())
    _fits(load_config(home.config), enrolment.kafka, home.config, servers)
    return enrolment.name


def _toml(kafka: Kafka) -> str:
    lines = [f"{f.name} = {json.dumps(value)}" for f in fields(Kafka) if (value := getattr(kafka, f.name)) != f.default]
    return "\n".join(["[kafka]", *lines, ""])


def _fits(config: Config, kafka: Kafka, path: Path, servers: str | None) -> None:
    """Refuse a configuration by which this process would be alone."""
    for name in ("prefix", "partitions"):
        own, wanted = getattr(config.kafka, name), getattr(kafka, name)
        if own != wanted:
            raise OperatorFault(f"{path}: kafka.{name}: `{own}` is not that of the enrolment, `{wanted}`")
    if not servers and not config.kafka.servers:
        raise OperatorFault(
            f"{path}: kafka.servers: is empty, the enrolment says `{kafka.servers}`; write it there, or give --kafka"
        )
