"""`wardline sql`: ask the store as its read-only user."""

import argparse
import re
import sys
from typing import Any, Final

from pipeline.cli.common import Commands, add_clickhouse, config_of, home_of
from schemas.errors import OperatorFault, PeerFault
from schemas.links import store_link

FORMATS: Final = {"pretty": "PrettyCompactMonoBlock", "csv": "CSV", "json": "JSON"}
"""What `--format` means where a query names no FORMAT of its own."""

QUERY_BYTES_MAX: Final = 1 << 20
"""Bytes of one query's text, from the command line or stdin."""

CONNECT_S: Final = 10
ANSWER_S: Final = 3600
"""How long an answer may take; the store has its own limit (`store.query_seconds`)."""

_PARAM: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `sql`."""
    parser = commands.add_parser("sql", parents=[common], help="ask the store in SQL", allow_abbrev=False)
    parser.add_argument("query", metavar="QUERY", help="the query, or `-` to read it from standard input")
    parser.add_argument("--format", choices=tuple(FORMATS), default="pretty" if sys.stdout.isatty() else "csv",
                        help="how to print the answer (default: pretty on a terminal, else csv)")  # fmt: skip
    parser.add_argument("--param", metavar="NAME=VALUE", action="append", default=[],
                        help="the value of `{NAME:Type}` in the query; may be given again")  # fmt: skip
    add_clickhouse(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the answer. Raises OperatorFault for what the store refuses, PeerFault when it is away."""
    # imported here: no other command needs the client, and it takes as long as all the rest
    from clickhouse_connect import get_client
    from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

    query = sys.stdin.read(QUERY_BYTES_MAX + 1) if args.query == "-" else args.query
    if len(query.encode(errors="surrogateescape")) > QUERY_BYTES_MAX:
        raise OperatorFault(f"the query has more than {QUERY_BYTES_MAX} bytes")
    if not query.strip():
        raise OperatorFault("the query is empty")
    home = home_of(args)
    link = store_link(home, config_of(args, home), "reader")
    params = dict(map(_param, args.param))
    try:
        with get_client(**link.options(), database=link.database, connect_timeout=CONNECT_S, send_receive_timeout=ANSWER_S,
                        autogenerate_session_id=False, show_clickhouse_errors=True) as client:  # fmt: skip
            _print(client, query, FORMATS[args.format], params)
    except OperationalError as fault:
        raise PeerFault(f"the store at {link.host}:{link.port} does not answer") from fault
    except ClickHouseError as fault:
        raise OperatorFault(one_line(str(fault))) from fault
    return 0


def _print(client: Any, query: str, output: str, params: dict[str, str]) -> None:
    # the header names the format only where the query does not
    headers = {"X-ClickHouse-Format": output}
    with client.raw_stream(query, parameters=params, transport_settings=headers) as stream:
        while block := stream.read(1 << 16):
            sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _param(text: str) -> tuple[str, str]:
    found = _PARAM.fullmatch(text)
    if found is None:
        raise OperatorFault(f"--param: `{text}` is not NAME=VALUE")
    return found[1], found[2]


def one_line(text: str) -> str:
    """A server's error as one line of ours: `code 60 UNKNOWN_TABLE: unknown table ...`."""
    flat = " ".join(text.split())
    found = re.search(r"Code: (\d+)\. DB::Exception: (.*?)\.? \(([A-Z0-9_]+)\) ?\(version", flat)
    if found is None:
        return flat
    code, message, name = found.groups()
    return f"code {code} {name}: {message[:1].lower()}{message[1:]}"
