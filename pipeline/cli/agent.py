"""`wardline agent add | list | show | remove | rotate`: who may act, and the credential that proves it.

A credential is made here, 32 random bytes, and printed once. What leaves this process is its scrypt hash, so control, its
journal, the log and whoever reads them never had it. With `--keep` it is written into the home instead, for `wardline run`.
"""

import argparse
import base64
import hashlib
import json
import secrets
from typing import Any, Final

from pipeline.cli.applied import add_waiting, report
from pipeline.cli.common import Commands, add_group, clock, config_of, home_of, printable, table
from pipeline.cli.credential import Keeper, forget
from pipeline.shells.controlclient import PAGE, Change, Control, Unsettled, name_of
from schemas.errors import OperatorFault

SECRET_BYTES: Final = 32
SCRYPT_N: Final = 1 << 14
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
"""16 MiB and some 50 ms for one guess; the secret itself has 256 bits, so that no guess is worth it."""

SALT_BYTES: Final = 16
HASH_BYTES: Final = 32


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `agent` with its five commands."""
    inner, where = add_group(commands, common, "agent", "agents and their credentials")

    text = "name an agent, and print its credential once, alone on the last line"
    add = inner.add_parser("add", parents=[where], help=text, allow_abbrev=False)
    add.add_argument("name", metavar="NAME", help="as policies name it: Agent::\"NAME\"")
    add.add_argument("--owner", required=True, metavar="WHO", help="who answers for it")
    add.add_argument("--sub", nargs=2, action="append", default=[], metavar=("ISSUER", "SUBJECT"),
                     help="a token of this issuer with this subject is the agent's; may be given again")  # fmt: skip
    add.add_argument("--spiffe", action="append", default=[], metavar="ID",
                     help="a certificate with this SPIFFE id is the agent's; may be given again")  # fmt: skip
    add.set_defaults(run=run_add)

    listing = inner.add_parser("list", parents=[where], help="list them", allow_abbrev=False)
    listing.set_defaults(run=run_list)
    show = inner.add_parser("show", parents=[where], help="owner, outside identities, when it was added", allow_abbrev=False)
    show.set_defaults(run=run_show)
    for reader in (listing, show):
        reader.add_argument("--json", action="store_true", help="for programs")

    remove = inner.add_parser("remove", parents=[where], help="end it: every door refuses it from now on", allow_abbrev=False)
    remove.set_defaults(run=run_remove)
    add_waiting(remove)
    rotate = inner.add_parser("rotate", parents=[where], help="a new credential; the old one ends", allow_abbrev=False)
    rotate.set_defaults(run=run_rotate)
    for made in (add, rotate):
        made.add_argument("--keep", action="store_true", help="keep the credential in this home (0600), for `wardline run`")
    for named in (show, remove, rotate):
        named.add_argument("name", metavar="NAME", help="the agent")


def make_secret() -> str:
    """A credential: 43 characters of `[A-Za-z0-9_-]`."""
    return secrets.token_urlsafe(SECRET_BYTES)


def scrypt_of(secret: str, salt: bytes) -> str:
    """What is kept of a credential: `scrypt$n$r$p$salt$hash`, salt and hash in base64."""
    made = hashlib.scrypt(secret.encode(), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=HASH_BYTES)
    parts = (base64.b64encode(part).decode() for part in (salt, made))
    return "$".join(("scrypt", str(SCRYPT_N), str(SCRYPT_R), str(SCRYPT_P), *parts))


def _control(args: argparse.Namespace) -> Control:
    home = home_of(args)
    return Control(home, config_of(args, home))


def run_add(args: argparse.Namespace) -> int:
    """`wardline agent add`: the secret is the last line of stdout, and is nowhere else; or in the home, with `--keep`."""
    change, secret = _with_secret(args, "agent-add", owner=args.owner, subs=args.sub, spiffe=args.spiffe)
    print(f"added agent `{args.name}` as epoch {change.epoch}; {_where(args)}")
    if not args.keep:
        print(secret)
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    """`wardline agent rotate`: as `add`. A credential that was kept is replaced by the new one, or removed with the old."""
    change, secret = _with_secret(args, "agent-rotate")
    print(f"agent `{args.name}` has a new credential as epoch {change.epoch}, the old one has ended; {_where(args)}")
    if not args.keep:
        forget(home_of(args), args.name)
        print(secret)
    return 0


def _where(args: argparse.Namespace) -> str:
    if args.keep:
        return f"its credential is in {Keeper(home_of(args), args.name).path}"
    return "its credential, shown this once:"


def _with_secret(args: argparse.Namespace, do: str, **fields: Any) -> tuple[Change, str]:
    """Ask for a change that gives an agent a new credential; with `--keep` it is on disk before control knows of it."""
    home = home_of(args)
    control = Control(home, config_of(args, home))
    secret = make_secret()
    keeper = Keeper(home, args.name) if args.keep else None
    if keeper is not None:
        keeper.write(secret)
    try:
        change = control.change(do, name=args.name, secret=scrypt_of(secret, secrets.token_bytes(SALT_BYTES)), **fields)
    except Unsettled:
        raise  # it may be in force: what was written beside stays
    except BaseException:
        if keeper is not None:
            keeper.drop()
        raise
    if keeper is not None:
        keeper.settle()
    return change, secret


def run_remove(args: argparse.Namespace) -> int:
    """`wardline agent remove`: 0 when every door refuses it, else 1."""
    config = config_of(args, home := home_of(args))
    control = Control(home, config)
    change = control.change("agent-remove", name=args.name)
    forget(home, args.name)  # a crash before this leaves a credential that proves nothing any more
    return report(control, config, args, change, f"removed agent `{args.name}`")


def run_list(args: argparse.Namespace) -> int:
    """`wardline agent list`."""
    found = [_as_json(entry) for entry in _control(args).live("agent")]
    if args.json:
        print(json.dumps(found, indent=2))
    elif found:
        rows = [(one["name"], one["owner"], clock(one["changed"]), str(len(one["subs"]) + len(one["spiffe"]))) for one in found]
        print(table(("NAME", "OWNER", "CHANGED", "OUTSIDE IDENTITIES"), rows))
    else:
        print("there is no agent")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """`wardline agent show`: never the hash of its credential."""
    control = _control(args)
    entry = next((entry for entry in control.live("agent") if name_of(entry) == args.name), None)
    if entry is None:
        raise OperatorFault(f"there is no agent `{args.name}`")
    one = _as_json(entry) | {"added": _added(control, entry) / 1e9}
    if args.json:
        print(json.dumps(one, indent=2))
        return 0
    rows = [("name", one["name"]), ("owner", one["owner"]), ("added", clock(one["added"])), ("changed", clock(one["changed"]))]
    rows += [("sub", f"{subject} of {issuer}") for issuer, subject in one["subs"]]
    rows += [("spiffe", name) for name in one["spiffe"]]
    print("\n".join(f"{label:8}  {printable(text)}" for label, text in rows))
    return 0


def _added(control: Control, entry: dict[str, Any]) -> int:
    """When an agent was added, nanoseconds since 1970: the first entry of its name behind the last removal."""
    first, after = 0, 0
    while part := control.audit(after, PAGE, entry["key"]):
        for one in part:
            first = 0 if one["value"] is None else first or int(one["time_ns"])
        after = part[-1]["epoch"]
    return first or int(entry["time_ns"])


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry["value"]
    return {
        "name": name_of(entry), "owner": value["owner"], "subs": value["subs"], "spiffe": value["spiffe"],
        "changed": entry["time_ns"] / 1e9, "by": entry["actor"], "epoch": entry["epoch"],
    }  # fmt: skip
