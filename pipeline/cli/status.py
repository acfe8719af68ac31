"""`wardline status`: what lives, how far it is, what it holds on disk, and what is not safe.

Everything comes from the run files and folders of the home, so it answers while broker and store are away; only the number of
dead letters is asked of the store, and of control what enforcers on other machines said.
"""

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.cli.common import Commands, clock, config_of, home_of, shown_size
from pipeline.shells.controlclient import Control
from schemas.config import Config
from schemas.errors import WardlineError
from schemas.home import Home
from schemas.keys import loose_mode
from schemas.links import embedded_broker, store_link
from schemas.process import read_run_file

WAIT_POLL_S: Final = 0.2
STORE_WAIT_S: Final = 5
STAGES: Final = ("spooled", "sealed", "sent", "stored")
OWN_FIELDS: Final = ("name", "pid", "state", "address", "metrics")
DOOR_FIELDS: Final = ("host", "boot", "socket", "calls", "refused", "open", "tunnels", "epoch")
"""What a door says beside those, where it does; the `address` of one that is a proxy is the proxy's."""

BLOCKERS: Final = ("full", "waits_for", "fault")
"""What a host, a worker and a door say when they cannot go on, or not with what is wanted, in their own words."""

CONTROL_FIELDS: Final = (
    "state", "epoch", "published", "counter", "digest", "live", "problem", "policy_digest", "policy_problem",
)  # fmt: skip
"""What control says of itself in its run file."""

DETECTION: Final = ("calls", "findings", "lag", "evicted")
"""What a worker's lookout says of itself since it started."""

HOST_FIELDS: Final = ("host", "state", "why", "epoch", "policy_digest", "seen_s")

NEIGHBOURS_MAX: Final = 3
"""Programs that the warning about a shared user id names."""


@dataclass(slots=True)
class Status:
    """What is found in a home at one moment; `lag` counts records, `disk` bytes, `detection` calls, words and messages."""

    home: str
    ready: bool = False
    processes: list[dict[str, Any]] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    policy_digest: str = ""
    control: dict[str, Any] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    disk: dict[str, int] = field(default_factory=dict)
    deadletters: int | None = None
    detection: dict[str, int] = field(default_factory=dict)
    lookouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each worker what its detectors keep, and who has told whom most, in bits."""
    siem: list[dict[str, Any]] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `status`."""
    text = "what runs, how far it is, what is not safe"
    parser = commands.add_parser("status", parents=[common], help=text, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="for programs")
    text = "wait until everything is ready: exit code 0, or 1 after this time"
    parser.add_argument("--wait", type=seconds, metavar="SECONDS", help=text)
    parser.set_defaults(run=run_status)


def seconds(text: str) -> float:
    """A time to wait, from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds, 0 to 86400")
    return value


def run_status(args: argparse.Namespace) -> int:
    """Print the status; 0 when everything that should live is ready, else 1."""
    home = home_of(args)
    deadline = time.monotonic() + (args.wait or 0.0)
    while not (is_ready(home, config_of(args, home)) or time.monotonic() >= deadline):
        time.sleep(min(WAIT_POLL_S, max(0.0, deadline - time.monotonic())))
    found = collect(home, config_of(args, home))
    if args.json:
        print(json.dumps({name: getattr(found, name) for name in Status.__slots__}, indent=2))
    elif not any(process["pid"] for process in found.processes):
        print(f"nothing runs in {home.root}")
    else:
        print(render(found))
    return 0 if found.ready else 1


def expected(home: Home, config: Config) -> list[str]:
    """The processes that must live here: what a living `up` has planned, or else whatever was started alone.

    What was started alone and was killed has left its run file, so it still counts. A home needs control, a worker and an
    enforcer, and the embedded ends unless the configuration names servers; one that was enrolled, what was enrolled. The doors
    of a living host count too.
    """
    names = _expected(home, config)
    return [*names, *(door["name"] for name in names for door in _doors(read_run_file(home.run_file(name))))]


def _doors(said: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a living host says of the egress doors that it keeps."""
    return list(said.get("doors") or ()) if said is not None and said["alive"] else []


def _expected(home: Home, config: Config) -> list[str]:
    said = read_run_file(home.run_file("up"))
    if said is not None and said["alive"]:
        return [str(name) for name in said["names"]]
    if enrolled := _enrolled(home):
        return enrolled
    names = [file.stem for file in _run_files(home) if file.stem.startswith(("work-", "enforce-"))]
    for kind in ("work", "enforce"):
        if not any(name.startswith(f"{kind}-") for name in names):
            names.append(f"{kind}-1")
    ends = (["broker"] if embedded_broker(config) else []) + ([] if config.clickhouse.url else ["store"])
    siem = ["siem"] if home.run_file("siem").exists() else []
    return [*ends, "control", *siem, *sorted(names, key=_order)]


def _enrolled(home: Home) -> list[str]:
    """The names that a home has from enrolment files: it pins a control whose key is elsewhere."""
    if not any(home.trusted("control").glob("*.pub")) or any(home.private_key("control", "x").parent.glob("*.key")):
        return []
    keys = (path.stem for role in ("workers", "hosts") for path in home.private_key(role, "x").parent.glob("*.key"))
    return [name for name in keys if not name.startswith("replay-")]


def is_ready(home: Home, config: Config) -> bool:
    """Whether every expected process says that it is ready, and `up`, if there is one, says so too."""
    said = read_run_file(home.run_file("up"))
    if said is not None and said["alive"] and said["state"] != "ready":
        return False
    return all(_process(home, name)["state"] == "ready" for name in expected(home, config))


def _run_files(home: Home) -> list[Path]:
    return [file for file in home.run.glob("*.json") if not file.name.startswith(".")] if home.run.is_dir() else []


def _order(name: str) -> tuple[int, str, int]:
    kind, _, number = name.partition("-")
    kinds = ("up", "broker", "store", "control", "siem", "work", "enforce", "door", "replay")
    return kinds.index(kind) if kind in kinds else len(kinds), kind, int(number) if number.isdigit() else 0


def _process(home: Home, name: str) -> dict[str, Any]:
    said = read_run_file(home.run_file(name))
    if said is None or not said["alive"]:
        return {"name": name, "pid": None, "state": "down", "address": "", "metrics": ""}
    shown = {key: said.get(key, "") for key in OWN_FIELDS}
    if is_stopped(int(said["pid"])):
        shown["state"] = "stopped"  # by SIGSTOP or a debugger: it says of itself what it last said
    elif shown["state"] == "ready" and (feed := _feed(said)).get("state", "ready") != "ready":
        shown["state"] = feed["state"]  # a host that was ready and has heard nothing of control since
    if name.startswith("door-"):
        return shown | {key: said[key] for key in DOOR_FIELDS if key in said}
    if said.get("policy_digest"):
        shown["policy_digest"] = said["policy_digest"]
    return shown


def _feed(said: dict[str, Any]) -> dict[str, Any]:
    """What a host or worker says of what it hears of control: `why` it cannot go on, and of a host also its `state`."""
    return dict(said.get("control") or {})


def is_stopped(pid: int) -> bool:
    """Whether a process is held by SIGSTOP or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def collect(home: Home, config: Config) -> Status:
    """Everything that `status` shows."""
    found = Status(home=str(home.root), ready=is_ready(home, config))
    living = {file.stem for file in _run_files(home) if (read_run_file(file) or {}).get("alive")} - {"up"}
    names = sorted(living | set(expected(home, config)), key=_order) if living else []
    found.processes = [_process(home, name) for name in names]
    if config.kafka.servers:
        found.servers["kafka"] = config.kafka.servers
    if config.clickhouse.url:
        found.servers["clickhouse"] = config.clickhouse.url
    digests = sorted({p["policy_digest"] for p in found.processes if p.get("policy_digest") and p["name"] != "control"})
    if living:
        found.control = _control(home, config)
    found.policy_digest = digests[0] if len(digests) == 1 else "" if digests else found.control.get("policy_digest") or ""
    if len(digests) > 1:
        found.warnings.append(f"enforcers run {len(digests)} different policies (`wardline policy status` says which)")
    if problem := found.control.get("policy_problem"):
        found.warnings.append(f"policies: {problem['text']}; those in force stay")
    for name in names:
        _add_figures(found, name, read_run_file(home.run_file(name)) or {})
    if found.control.get("problem"):
        found.blocked.append(f"control: {found.control['problem']}")
    found.disk = {
        "spool_bytes": _bytes(home.hosts.glob("*/doors/*/*.seg")),
        "outbox_bytes": _bytes(home.hosts.glob("*/outbox/*.box")),
        "store_bytes": _bytes(home.store.rglob("*")) if home.store.is_dir() else 0,
    }
    if living:
        found.deadletters = _deadletters(home, config)
    found.warnings += unsafe(home, config)
    return found


def _add_figures(found: Status, name: str, said: dict[str, Any]) -> None:
    if not said.get("alive"):
        return
    for figures in (said, *dict(said.get("adopted") or {}).values()):
        for stage in STAGES:
            value = figures.get(stage)
            found.lag[stage] += value if isinstance(value, int) else 0
    found.blocked += [f"{name}: {said[key]}" for key in BLOCKERS if said.get(key)]
    found.blocked += [f"{door['name']}: {door['why']}" for door in _doors(said) if door["why"]]
    if why := (feed := _feed(said)).get("why"):
        found.blocked.append(f"{name}: {feed['state'] + ': ' if 'state' in feed else ''}{why}")
    found.warnings += [f"{name}: {line}" for line in said.get("torn", ())]
    looks: dict[str, Any] = said.get("lookout") or {}
    for what in DETECTION if looks else ():
        found.detection[what] = found.detection.get(what, 0) + int(looks.get(what, 0))
    if looks:
        found.lookouts[name] = {what: looks.get(what) for what in ("kept", "told")}
    if looks.get("defects"):
        found.warnings.append(f"{name}: {looks['defects']} detectors have failed and look at nothing more (its log says why)")
    if name == "siem":
        found.siem = list(said.get("sinks") or ())
        found.blocked += [f"siem: {sink['name']}: {sink['waits_for']}" for sink in found.siem if sink["waits_for"]]


def _bytes(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        try:
            found = file.lstat()
        except OSError:
            continue  # sealed, stored or merged away since it was listed
        total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _deadletters(home: Home, config: Config) -> int | None:
    """Frames that were refused and wait for `wardline deadletter`; None when the store does not answer."""
    try:
        link = store_link(home, config, "reader")
    except WardlineError:
        return None
    import clickhouse_connect  # a second of imports that only this question needs

    from schemas.store import quote_name

    sql = f"SELECT count() FROM {quote_name(link.database)}.deadletters FINAL WHERE state = 'new'"
    try:
        waits = {"connect_timeout": STORE_WAIT_S, "send_receive_timeout": STORE_WAIT_S}
        with clickhouse_connect.get_client(**link.options(), **waits) as client:
            return int(client.command(sql))
    except Exception:
        return None


def _control(home: Home, config: Config) -> dict[str, Any]:
    """Control as it said itself, with the enforcers that it has heard of."""
    said = read_run_file(home.run_file("control")) or {}
    if not said.get("alive") and not config.control.url:
        return {}
    shown: dict[str, Any] = {name: said.get(name) for name in CONTROL_FIELDS} | {"paused": None, "hosts": None}
    control = Control(home, config)
    try:
        now = control.ask("/status")
        hosts = control.ask("/acks")["hosts"]
    except WardlineError as fault:
        return shown | {"problem": shown["problem"] or str(fault)}
    shown |= {name: now[name] for name in (*CONTROL_FIELDS, "paused")}
    return shown | {"hosts": [{name: host[name] for name in HOST_FIELDS} for host in hosts if host["expected"]]}


# -- what is not safe ----------------------------------------------------------------------------------------------------


def unsafe(home: Home, config: Config) -> list[str]:
    """What an operator should put right, one line each."""
    if not home.root.is_dir():
        return []
    found = []
    info = home.root.stat()
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077:
        found.append(f"{home.root}: mode is {mode:04o}, must be 0700")
    named = (config.kafka.sasl_password_file, config.kafka.tls_key_file, config.clickhouse.writer_password_file,
             config.clickhouse.reader_password_file)  # fmt: skip
    secrets = [*home.root.glob("keys/*/*.key"), *home.root.glob("secrets/*"), *(Path(name) for name in named if name)]
    found += [wrong for path in sorted(secrets) if (wrong := loose_mode(path))]
    if info.st_uid == 0:
        found.append("wardline runs as root: an agent that does so too can read its keys and change its records; "
                     "give Wardline a user of its own")
    elif others := neighbours(info.st_uid):
        shown = ", ".join(others[:NEIGHBOURS_MAX]) + (", ..." if len(others) > NEIGHBOURS_MAX else "")
        found.append(f"other programs run as Wardline's user id {info.st_uid} ({shown}): an agent among them can read its keys "
                     "and change its records; give Wardline a user of its own")  # fmt: skip
    return found


def neighbours(uid: int) -> list[str]:
    """Names of programs under this user id that are not ours: neither this process nor one of the same interpreter's prefix."""
    names = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if entry.stat().st_uid != uid:
                continue
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if not any(sys.prefix.encode() in word for word in words[:2]):
                names.add((entry / "comm").read_text().strip())
        except OSError:
            continue  # it has ended, or is not ours to look at
    return sorted(names)


# -- for people ----------------------------------------------------------------------------------------------------------


def render(found: Status) -> str:
    """The status as text."""
    rows = [(p["name"], p["state"], str(p["pid"] or "-"), p["address"], _load(p)) for p in found.processes]
    rows += [(name, "server", "-", address, "") for name, address in found.servers.items()]
    wide = [max(len(row[n]) for row in rows) for n in range(5)]
    lines = [f"{'ready' if found.ready else 'NOT READY'}  {found.home}", ""]
    lines += ["  " + "  ".join(text.ljust(wide[n]) for n, text in enumerate(row)).rstrip() for row in rows]
    lag, disk = found.lag, found.disk
    waiting = lag["spooled"] - lag["stored"]
    letters = "unknown, the store does not answer" if found.deadletters is None else f"{found.deadletters:,}"
    lines += [
        "",
        f"  control       {_control_line(found.control)}",
        f"  policy        {found.policy_digest or '-'}",
        f"  records       {', '.join(f'{lag[stage]:,} {stage}' for stage in STAGES)}; {waiting:,} on their way",
        f"  disk          spools {shown_size(disk['spool_bytes'])}, outboxes {shown_size(disk['outbox_bytes'])}, "
        f"store {shown_size(disk['store_bytes'])}",
        f"  dead letters  {letters}",
    ]
    if looks := found.detection:
        lines.append(f"  detection     {looks['calls']:,} calls looked at, {looks['findings']:,} words on findings, "
                     f"{looks['lag']:,} messages wait, {looks['evicted']:,} evicted")  # fmt: skip
    lines += [f"  siem          {_sink_line(sink)}" for sink in found.siem]
    lines += [f"  BLOCKED       {line}" for line in found.blocked]
    lines += [f"  WARNING       {line}" for line in found.warnings]
    return "\n".join(lines)


def _load(process: dict[str, Any]) -> str:
    """What a door has to do: its calls since its start, and the tunnels that are open."""
    if process.get("calls") is None:
        return ""
    tunnels = process.get("tunnels")
    return f"{process['calls']:,} calls" + ("" if tunnels is None else f", {tunnels:,} tunnels open")


def _sink_line(sink: dict[str, Any]) -> str:
    """A sink of security events: how far it is, and what went wrong last."""
    behind = f"{sink['lag_s']:,.0f} s behind" if sink["lag_s"] >= 1 else "up to date"
    line = f"{sink['name']} ({sink['where']}): {sink['sent']:,} sent, {behind}"
    if sink["last_error"] and not sink["waits_for"]:
        line += f"; last error at {clock(sink['last_error_s'])}: {sink['last_error']}"
    return line


def _control_line(control: dict[str, Any]) -> str:
    if not control:
        return "-"
    parts = [f"PAUSED ({control['paused']['reason']})"] if control["paused"] else []
    parts.append(f"epoch {control['epoch'] or 0}")
    if control["hosts"] is not None:
        hosts = control["hosts"]
        late = ", ".join(f"{host['host']} {host['state']}" for host in hosts if host["state"] != "ready")
        ready = sum(host["state"] == "ready" for host in hosts)
        parts.append(f"{ready} of {len(hosts)} enforcers ready{f' ({late})' if late else ''}")
    return ", ".join(parts)
