"""Looks at the home: policy files that have changed, and keys of hosts and workers that control does not know yet.

A set of files is acted on when two looks in a row have found it the same, and only when it compiles to something else than the
last set that came from files: so a rollback stands until somebody edits them. A set that is wrong changes nothing.
"""

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.policy.load import ENTITIES, SUFFIX, load_set, statement
from pipeline.shells.control.books import Books
from schemas.chunks import count_chunks
from schemas.config import Config
from schemas.errors import OperatorFault, PeerFault
from schemas.home import Home
from schemas.keys import parse_public
from schemas.limits import BUNDLE_BYTES_MAX, EMBEDDED_LOG_BYTES_MAX
from schemas.links import embedded_broker

log = logging.getLogger(__name__)

ACTOR: Final = "home"
ROLES: Final = {"hosts": "enforcer", "workers": "worker"}
KEY_FILE_BYTES_MAX: Final = 4096
RETRY_S: Final = 5.0

_PLACE: Final = re.compile(r"^(.*?):(\d+):(\d+): (.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with the policy files."""

    file: str
    line: int
    column: int
    message: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else self.message


def problem_of(fault: OperatorFault) -> Problem:
    """Take a fault of the compiler apart."""
    found = _PLACE.match(str(fault))
    if found is None:
        return Problem(file="", line=0, column=0, message=str(fault))
    return Problem(file=found[1], line=int(found[2]), column=int(found[3]), message=found[4])


class Watch:
    """Looks every `watch_ms`."""

    def __init__(self, home: Home, config: Config, books: Books) -> None:
        self._home = home
        self._books = books
        self._every_s = config.control.watch_ms / 1000
        self._embedded = embedded_broker(config)
        self._seen: object = None
        self._done: object = None
        self._trust: dict[Path, tuple[object, float]] = {}
        """What a pinned key looked like, and when to try again where it could not be registered."""
        self.problem: Problem | None = None

    async def run(self) -> None:
        """Look for ever; returns only by cancellation."""
        while True:
            try:
                await self._look_at_keys()
                await self._look_at_policies()
            except PeerFault as fault:
                log.warning("%s", fault)
            await asyncio.sleep(self._every_s)

    # -- policies ----------------------------------------------------------------------------------------------------

    async def _look_at_policies(self) -> None:
        found = _look(self._home.policies)
        before, self._seen = self._seen, found
        if found != before or found == self._done:
            return
        await self._compile()
        if _look(self._home.policies) == found:  # else they have changed while they were read: look again
            self._done = found

    async def _compile(self) -> None:
        try:
            made = await asyncio.to_thread(self._make)
        except OperatorFault as fault:
            self._say(problem_of(fault))
            return
        if made is not None:
            facts, packed, line = made
            await self._books.change({"do": "policy", **facts}, actor=ACTOR, bundle=packed)
            log.info("%s", line)
        self._say(None)

    def _make(self) -> tuple[dict[str, Any], bytes, str] | None:
        """The set's facts, its packed bundle and a line about it; None when it is the last one that came from files."""
        known = load_set(self._home.policies)
        data = known.bundle.encode()
        digest = known.bundle.digest
        if digest == self._books.log.files_digest:
            return None
        if len(data) > BUNDLE_BYTES_MAX:
            raise OperatorFault(f"{self._home.policies}: compiles to {len(data)} bytes, limit is {BUNDLE_BYTES_MAX}")
        packed = pa.Codec("zstd").compress(data, asbytes=True)
        if self._embedded and len(packed) > EMBEDDED_LOG_BYTES_MAX:
            raise OperatorFault(
                f"{self._home.policies}: compiles to {len(packed)} packed bytes, limit is {EMBEDDED_LOG_BYTES_MAX} on the "
                "embedded broker; a kafka (kafka.servers) has no such limit"
            )
        facts = {"digest": digest, "bytes": len(data), "packed": len(packed), "chunks": count_chunks(packed),
                 "policies": known.policies}  # fmt: skip
        return facts, packed, statement(self._home.policies, known)

    def _say(self, problem: Problem | None) -> None:
        if problem is not None and problem != self.problem:
            log.error("%s; the policies in force stay", problem.text)
        elif problem is None and self.problem is not None:
            log.info("the policy files are right again")
        self.problem = problem

    # -- keys --------------------------------------------------------------------------------------------------------

    async def _look_at_keys(self) -> None:
        for role, kind in ROLES.items():
            folder = self._home.trusted(role)
            for name, about in _names(folder, ".pub"):
                path = folder / name
                known, due = self._trust.get(path, (None, math.inf))
                if known == about and time.monotonic() < due:
                    continue
                due = math.inf
                try:
                    await self._register(kind, path)
                except OperatorFault as fault:  # also one that passes, such as no room on the embedded broker
                    due = time.monotonic() + RETRY_S
                    if known != about:
                        log.error("%s: is not registered: %s", path, fault)
                self._trust[path] = about, due

    async def _register(self, kind: str, path: Path) -> None:
        public = _public(path)
        key = f"{kind}/{path.stem}"
        entry = self._books.log.get(key)
        if entry is not None and entry.value is not None and entry.value["key"] == public:
            return
        if self._books.log.was_dropped(key, public):
            return  # somebody took it away: only `add` gives it back
        await self._books.change({"do": f"{kind}-add", "name": path.stem, "key": public}, actor=ACTOR)


def _look(folder: Path) -> object:
    """What a folder of policies looks like from outside; equal when nothing was written in between."""
    names = _names(folder, SUFFIX)
    return names, next((about for name, about in _names(folder, ENTITIES) if name == ENTITIES), None)


def _names(folder: Path, ending: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(ending):
                    about = entry.stat(follow_symlinks=False)
                    found.append((entry.name, (about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino)))
    except FileNotFoundError:
        return [] if not folder.exists() else [("?", None)]
    except OSError as fault:
        return [("?", str(fault))]
    return sorted(found)


def _public(path: Path) -> str:
    """The raw key in a pinned file, hex."""
    try:
        with path.open("rb") as file:
            return parse_public(file.read(KEY_FILE_BYTES_MAX)).hex()
    except (OSError, ValueError) as fault:
        raise OperatorFault("is no public key of Ed25519") from fault


def facts_of(problem: Problem | None) -> Mapping[str, Any] | None:
    """A problem as JSON."""
    if problem is None:
        return None
    return {**asdict(problem), "text": problem.text}
