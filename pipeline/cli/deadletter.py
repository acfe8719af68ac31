"""`wardline deadletter list | show | retry`: the messages that a worker could not accept, with their bytes and the reason."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.cli.common import Commands, add_clickhouse, add_kafka, config_of, home_of
from schemas.config import Config
from schemas.errors import FrameFault, OperatorFault, PeerFault
from schemas.frame import parse_frame
from schemas.home import Home
from schemas.limits import MIB
from schemas.links import kafka_security, kafka_servers, store_link
from schemas.store import DEADLETTER_STATES, quote_name
from schemas.topics import Topics

NEW, RETRIED = DEADLETTER_STATES
ID_DIGITS_MIN: Final = 8
"""Hex digits of an id that name one letter, if no other begins with them."""

WAIT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `id` is the SHA-256 of its bytes in hex; `received` is UTC."""

    id: str
    received: str
    partition: int
    offset: int
    enforcer: str
    enforcer_boot: int
    frame_no: int
    reason: str
    message: str
    bytes: int
    state: str

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; the boot in hex, as everywhere."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return said | {"enforcer_boot": f"{self.enforcer_boot:016x}"}


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `deadletter` and its three commands."""
    text = "messages that a worker could not accept"
    parser = commands.add_parser("deadletter", parents=[common], help=text, allow_abbrev=False)
    add_clickhouse(parser)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # both `deadletter --home DIR list` and `deadletter list --home DIR`: the inner one says nothing when it is not given
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument("--home", metavar="DIR", help=argparse.SUPPRESS)
    where.add_argument("--clickhouse", metavar="URL", help=argparse.SUPPRESS)

    listing = inner.add_parser("list", parents=[where], help="list them, the newest first", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=run_list)

    show = inner.add_parser("show", parents=[where], help="show one", allow_abbrev=False)
    show.add_argument("id", metavar="ID", help=f"its id, or the first {ID_DIGITS_MIN} digits of it")
    show.add_argument("--out", metavar="FILE", help="write its bytes there, as they came from Kafka")
    show.set_defaults(run=run_show)

    retry = inner.add_parser("retry", parents=[where], help="send their bytes to the workers again", allow_abbrev=False)
    retry.add_argument("ids", nargs="*", metavar="ID", help="SHA-256 of the bytes, or its first 8 digits or more")
    retry.add_argument("--all", action="store_true", help="each that was not retried yet")
    add_kafka(retry)
    retry.set_defaults(run=run_retry)


def _clean(text: str) -> str:
    """What a forged head says of itself must not write to a terminal what it likes."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


@contextlib.contextmanager
def _store(home: Home, config: Config, user: str) -> Iterator[Any]:
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    link = store_link(home, config, user)
    try:
        with clickhouse_connect.get_client(**link.options(), autogenerate_session_id=False) as client:
            yield client
    except (ClickHouseError, OSError) as fault:
        raise PeerFault(f"the store at {link.host}:{link.port}: {' '.join(str(fault).split())[:300]}") from fault


def _letters(client: Any, config: Config, where: str = "1") -> list[Letter]:
    rows = client.query(
        "SELECT lower(hex(digest)), toString(received), partition, offset, enforcer, enforcer_boot, frame_no, toString(reason),"
        f" message, length(data), toString(state) FROM {quote_name(config.clickhouse.database)}.deadletters FINAL"
        f" WHERE {where} ORDER BY received DESC, digest"
    ).result_rows
    return [Letter(*row) for row in rows]


def _find(client: Any, config: Config, text: str) -> Letter:
    digits = text.lower()
    if not ID_DIGITS_MIN <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise OperatorFault(f"`{text}` is no id: {ID_DIGITS_MIN} to 64 hex digits")
    found = _letters(client, config, f"startsWith(lower(hex(digest)), '{digits}')")
    if not found:
        raise OperatorFault(f"there is no dead letter `{text}`")
    if len(found) > 1:
        raise OperatorFault(f"`{text}` is the beginning of {len(found)} ids, give more of it")
    return found[0]


def _data(client: Any, config: Config, letter: Letter) -> bytes:
    table = f"{quote_name(config.clickhouse.database)}.deadletters"
    # as hex, because a client decodes a String column as text where it can
    (row,) = client.query(f"SELECT hex(data) FROM {table} FINAL WHERE digest = unhex('{letter.id}')").result_rows
    return bytes.fromhex(row[0])


def _mark(client: Any, config: Config, letter: Letter, state: str) -> None:
    table = f"{quote_name(config.clickhouse.database)}.deadletters"
    columns = "received, partition, offset, enforcer, enforcer_boot, frame_no, reason, message, digest, data"
    client.command(
        f"INSERT INTO {table} ({columns}, state) SELECT {columns}, '{state}' FROM {table} FINAL"
        f" WHERE digest = unhex('{letter.id}')"
    )


def run_list(args: argparse.Namespace) -> int:
    """`wardline deadletter list`."""
    home = home_of(args)
    config = config_of(args, home)
    with _store(home, config, "reader") as client:
        letters = _letters(client, config)
    if args.json:
        for letter in letters:
            print(json.dumps(letter.as_json()))
    elif not letters:
        print("no dead letters")
    else:
        for letter in letters:
            lane = f"{_clean(letter.enforcer)}/{letter.enforcer_boot:016x}/{letter.partition}#{letter.frame_no}"
            said = f"{letter.id[:12]}  {letter.received[:19]}  {letter.state:7}  {letter.reason:9}  {letter.bytes:7} B  "
            print(said + (lane if letter.enforcer else "-"))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """`wardline deadletter show`."""
    home = home_of(args)
    config = config_of(args, home)
    with _store(home, config, "reader") as client:
        letter = _find(client, config, args.id)
        data = _data(client, config, letter) if args.out else b""
    for name, value in letter.as_json().items():
        print(f"{name:14} {_clean(str(value))}")
    if args.out:
        handle = os.open(args.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        print(f"{'written to':14} {Path(args.out)}")
    return 0


def run_retry(args: argparse.Namespace) -> int:
    """`wardline deadletter retry`."""
    if bool(args.ids) == args.all:
        raise OperatorFault("give the ids of dead letters, or --all")
    home = home_of(args)
    config = config_of(args, home)
    with _store(home, config, "writer") as client:
        if args.all:
            letters = _letters(client, config, f"state = '{NEW}' AND length(data) > 0")
        else:
            letters = list({letter.id: letter for letter in (_find(client, config, text) for text in args.ids)}.values())
        _check(letters, config)
        sent = asyncio.run(_retry(client, home, config, letters))
    print(f"{sent} sent again; what is refused again is in the list again")
    return 0


def _check(letters: Sequence[Letter], config: Config) -> None:
    for letter in letters:
        if letter.bytes == 0:
            raise OperatorFault(f"dead letter `{letter.id[:12]}` has no bytes to send")
        if letter.partition >= config.kafka.partitions:
            raise OperatorFault(
                f"dead letter `{letter.id[:12]}` is of partition {letter.partition}, there are {config.kafka.partitions} now"
            )


def own_partition(data: bytes, came_in: int, partitions: int) -> int:
    """Where a dead letter's bytes belong: where its frame says, else where it came in.

    A copy that somebody put into another partition has replaced the letter's row; it must not lead the frame there for ever.
    """
    try:
        partition = parse_frame(data).head.lane.partition
    except FrameFault:
        return came_in
    return partition if partition < partitions else came_in


async def _retry(client: Any, home: Home, config: Config, letters: Sequence[Letter]) -> int:
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError

    servers = kafka_servers(home, config)
    producer = AIOKafkaProducer(
        bootstrap_servers=servers, client_id="wardline-deadletter", acks="all", max_request_size=2 * MIB,
        **kafka_security(config),
    )  # fmt: skip
    sent = 0
    try:
        await asyncio.wait_for(producer.start(), WAIT_S)
        for letter in letters:
            data = _data(client, config, letter)
            # marked first: a worker that refuses it again writes a newer row, and that one must win
            _mark(client, config, letter, RETRIED)
            try:
                topic = Topics(config.kafka.prefix).calls
                partition = own_partition(data, letter.partition, config.kafka.partitions)
                await asyncio.wait_for(producer.send_and_wait(topic, data, partition=partition), WAIT_S)
            except (TimeoutError, KafkaError, OSError):
                _mark(client, config, letter, letter.state)
                print(f"wardline: {sent} of {len(letters)} were sent", file=sys.stderr)
                raise
            sent += 1
    except (TimeoutError, KafkaError, OSError) as fault:
        raise PeerFault(f"kafka at `{servers}`: {str(fault).partition(chr(10))[0] or 'no answer'}") from fault
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(producer.stop(), WAIT_S)
    return sent
