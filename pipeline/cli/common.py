"""What every command does first: find the home, read the configuration, apply what the command line overrides."""

import argparse
import dataclasses
import importlib.metadata
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from schemas.config import Config, load_config
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.keys import query_key
from schemas.process import private_dir, read_run_file

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a module's `register` adds its commands."""

PACKAGES: Final = ("enforcers", "ext", "pipeline", "schemas")
"""Our top-level names. They are common words, so another distribution may claim one: see `refuse_strangers`."""


def home_option() -> argparse.ArgumentParser:
    """The parent parser of every command that works on a home."""
    parser = argparse.ArgumentParser(add_help=False)
    text = "the folder with all state (default: $WARDLINE_HOME, or the user's state folder)"
    parser.add_argument("--home", metavar="DIR", help=text)
    return parser


def add_group(
    commands: Commands, common: argparse.ArgumentParser, name: str, text: str
) -> tuple[Commands, argparse.ArgumentParser]:
    """A command that has commands of its own; returns where to add them, and their parent parser.

    `NAME --home DIR COMMAND` and `NAME COMMAND --home DIR` are both understood: the inner one is silent when it is not given.
    """
    parser = commands.add_parser(name, parents=[common], help=text, allow_abbrev=False)
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument("--home", metavar="DIR", help=argparse.SUPPRESS)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True), where


def add_kafka(parser: argparse.ArgumentParser) -> None:
    """`--kafka`, for commands that reach the broker."""
    parser.add_argument("--kafka", metavar="HOST:PORT[,...]", help="use this Apache Kafka, not the embedded broker")


def add_clickhouse(parser: argparse.ArgumentParser) -> None:
    """`--clickhouse`, for commands that reach the store."""
    parser.add_argument("--clickhouse", metavar="URL", help="use this ClickHouse server, not the embedded store")


def default_root(environ: Mapping[str, str]) -> Path:
    """The home of a user who names none: `$XDG_STATE_HOME/wardline`, or `~/.local/state/wardline`."""
    state = environ.get("XDG_STATE_HOME") or ""
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "wardline"


def home_of(args: argparse.Namespace) -> Home:
    """The home that a command works on; it need not exist."""
    named = args.home or os.environ.get("WARDLINE_HOME") or ""
    root = Path(named).expanduser() if named else default_root(os.environ)
    return Home(Path(os.path.abspath(root)))


def open_home(home: Home) -> None:
    """Make the home, 0700, and the key of its queries' hashes in it. Raises OperatorFault when that cannot be.

    An empty folder that somebody made for us becomes private too. One with something in it keeps its mode, since it may not be
    ours alone; `wardline status` warns of it.
    """
    try:
        private_dir(home.root)
        if not any(home.root.iterdir()):
            home.root.chmod(0o700)
        query_key(home)
    except OSError as fault:
        raise OperatorFault(f"{home.root}: cannot be the home: {(fault.strerror or str(fault)).lower()}") from fault


def config_of(args: argparse.Namespace, home: Home) -> Config:
    """The configuration file under the command line's overrides.

    Without an override on the command line, those of a living `wardline up` of this home hold: its data is where it sends them.
    Raises OperatorFault naming the file, key and value that is wrong.
    """
    config = load_config(home.config)
    kafka, clickhouse = getattr(args, "kafka", None), getattr(args, "clickhouse", None)
    if kafka is None or clickhouse is None:
        said = read_run_file(home.run_file("up"))
        if said is not None and said["alive"]:
            kafka = said.get("kafka") if kafka is None else kafka
            clickhouse = said.get("clickhouse") if clickhouse is None else clickhouse
    if kafka:
        config = dataclasses.replace(config, kafka=dataclasses.replace(config.kafka, servers=kafka))
    if clickhouse:
        config = dataclasses.replace(config, clickhouse=dataclasses.replace(config.clickhouse, url=clickhouse))
    if config.kafka.servers:
        check_servers(config.kafka.servers)
    if config.clickhouse.url:
        check_url(config.clickhouse.url)
    return config


def check_servers(servers: str) -> None:
    """Refuse a broker list that is not HOST:PORT[,HOST:PORT...], before a client library does so at length."""
    for part in servers.split(","):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise OperatorFault(f"kafka.servers: `{part}` is not HOST:PORT")


def check_url(url: str) -> None:
    """Refuse an address that is not http(s)://HOST[:PORT]. One with a password in it is not shown, nor passed on to a child."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and not parts.query
        if "@" in parts.netloc:
            raise OperatorFault("clickhouse.url: must hold no user or password; name its file in reader_password_file")
        if not plain or parts.port == 0:
            raise ValueError
    except ValueError as fault:
        raise OperatorFault(f"clickhouse.url: `{url}` is not http(s)://HOST[:PORT]") from fault


def refuse_strangers(claims: Mapping[str, Sequence[str]] | None = None) -> None:
    """Raise OperatorFault when another distribution in this environment claims one of our package names.

    `claims` is what `importlib.metadata.packages_distributions()` says: which distributions bring each top-level package.
    """
    found = importlib.metadata.packages_distributions() if claims is None else claims
    for package in PACKAGES:
        for owner in found.get(package, ()):
            if owner != "wardline":
                raise OperatorFault(
                    f"package `{package}` is also claimed by distribution `{owner}`; "
                    "install wardline in an environment of its own"
                )


def called_as() -> str:
    """How the user can call us again from the same folder."""
    own = Path(sys.argv[0])
    if own.name != "wardline":
        return shlex.join([sys.executable, "-m", "pipeline.cli.main"])
    found = shutil.which("wardline")
    if found and os.path.abspath(found) == os.path.abspath(own):
        return "wardline"
    near = os.path.relpath(own)
    return shlex.quote(near if not near.startswith("..") else os.path.abspath(own))


def home_words(home: Home) -> str:
    """` --home DIR` for a command to copy, or nothing when a plain call finds this home."""
    return "" if home.root == default_root(os.environ) else f" --home {shlex.quote(str(home.root))}"


_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def shown_size(count: int) -> str:
    """Bytes as a person reads them."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} B" if not unit else f"{size:.1f} {_UNITS[unit]}"


def clock(seconds: float) -> str:
    """A time in seconds since 1970 as a person reads it, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def printable(text: str) -> str:
    """What somebody else wrote must not tell a terminal what to do."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their names; the last one is as wide as it is."""
    lines = [list(head), *([printable(text) for text in row] for row in rows)]
    wide = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join("  ".join(text.ljust(wide[n]) for n, text in enumerate(line)).rstrip() for line in lines)
