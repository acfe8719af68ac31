"""Who calls: a door's memory of what proved whom, and the slow checks behind it.

    known   the same field value as before: the same caller, in about a microsecond
    check   anything else: a token is verified at once; a secret is compared with the one that is known to be right, and only
            the first secret of an agent is put through scrypt, in a thread
    still   whether a caller would be known now: asked for what is open when agents or issuers have changed

Once the secret of an agent has been seen, any other is wrong without scrypt: a flood at its name costs microseconds, and
hinders nobody. A name that nobody has is refused at once: names are no secret, they stand in policies and records, and a secret
has 256 bits. Answers to both are the same, so the text tells nothing; the time tells that an agent is listed whose secret this
door has not seen yet.

What is remembered is keyed with random bytes of this process: neither secret nor token stays in its memory.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from enforcers.core.caller import JWS, UNREADY, Caller, NoIdentity
from enforcers.core.chain import make_chain
from enforcers.core.claims import caller_of, check_claims, issuer_of
from enforcers.core.credentials import Basic, Credential, Token, claimed_name, read_value, value_of
from enforcers.core.jws import Key, parse_jwks, parse_token, twin_of, verify
from enforcers.doors.egress.scrypt import THREADS, Scrypt, parameters
from schemas.agents import Agents, parse
from schemas.config import Issuer
from schemas.errors import OperatorFault
from schemas.vocabulary import agent_uid, shown

log = logging.getLogger(__name__)

REMEMBERED: Final = 8192
"""Field values in one of the two halves of the memory: some 800 bytes each, 14 MB in all."""

TOKEN_S: Final = 300
"""How long a verified token is believed without being verified again."""

WATCH_S: Final = 1.0
"""How often issuers' key files are looked at."""

KEEPS_S: Final = 2.0
"""How long the keys of a file stay good that cannot be read now: it may be being written."""

WRONG: Final = "the agent and its secret do not fit: `wardline agent rotate` gives an agent a new one"
HEAD_BYTES: Final = 80
"""Of the agents file: enough for the epoch in its first line, so that no two states of it are taken for one."""


class Held(NamedTuple):
    """Who somebody is, and until when that may be believed without another look at the credential."""

    caller: Caller
    until_s: float


@dataclass(slots=True)
class _Issuer:
    said: Issuer
    keys: tuple[Key, ...] = ()
    sign: tuple[int, ...] | None = None
    """Of the file that the keys are from: inode, size, time."""
    fault: str = ""
    failed: float = 0.0
    """Since when the file cannot be read; 0 when it can."""


class Identify:
    """One door's; everything but scrypt itself is done by the thread of its event loop."""

    def __init__(
        self, agents_path: Path, issuers: Sequence[Issuer], *, wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic, threads: int = THREADS,
    ) -> None:  # fmt: skip
        """Nobody is known before the first `refresh`. `wall` is seconds since 1970, `clock` monotonic.

        Raises OperatorFault for an issuer whose key file is no good: a door does not begin with less trust than was meant.
        """
        self.agents = Agents()
        self.fault = f"{agents_path}: is not there yet"
        """Why no agent is known; empty when they are."""
        self._path = agents_path
        self._sign: tuple[object, ...] | None = None
        self._issuers = {one.url: _Issuer(one) for one in issuers}
        self._wall, self._clock = wall, clock
        key = os.urandom(32)
        self._hasher = hashlib.blake2b(key=key, digest_size=16)
        self.changes = 0
        """How often what was remembered has been forgotten: whoever keeps a `Held` keeps this with it, and the value."""
        self._new: dict[bytes, Held] = {}
        self._old: dict[bytes, Held] = {}
        self._right: dict[str, bytes] = {}
        """Stored hash -> keyed hash of the one secret that fits."""
        self._scrypt = Scrypt(threads)
        self.look()
        for issuer in self._issuers.values():
            if issuer.fault:
                raise OperatorFault(issuer.fault)

    # -- what a door asks --------------------------------------------------------------------------------------------

    def known(self, value: bytes | None, now_s: float) -> Caller | None:
        """Who has shown exactly this field value before, and is still who it was; None: ask `check`."""
        held = self.held(value, now_s)
        return held.caller if held is not None else None

    def held(self, value: bytes | None, now_s: float) -> Held | None:
        """The same, and how long it may be kept: until then, or until `changes` has changed."""
        if value is None:
            return None
        hasher = self._hasher.copy()
        hasher.update(value)
        mark = hasher.digest()
        held = self._new.get(mark)
        if held is None:
            held = self._old.pop(mark, None)
            if held is None:
                return None
            self._remember(mark, held)
        if now_s < held.until_s:
            return held
        self._new.pop(mark, None)
        return None

    async def check(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Who a request is from; names of fields are in lower case. Raises NoIdentity."""
        value = value_of(headers)
        if self.fault:
            raise NoIdentity(UNREADY, "this door does not know the agents yet: try again")
        said = read_value(value)
        caller = self._of_token(said) if isinstance(said, Token) else await self._of_secret(said)
        now_s = self._wall()
        until = min(caller.until_s, now_s + TOKEN_S) if caller.until_s else float("inf")
        if now_s < until and self.still(caller):
            hasher = self._hasher.copy()
            hasher.update(value)
            self._remember(hasher.digest(), Held(caller, until))
        return caller

    def still(self, caller: Caller) -> bool:
        """Whether a caller would be known now, by what it was known by."""
        if caller.proof != JWS:
            agent = self.agents.by_name.get(caller.agent)
            return agent is not None and _called(agent.secret) == caller.credential
        issuer = self._issuers.get(caller.issuer)
        return (
            issuer is not None and any(key.thumbprint == caller.key for key in issuer.keys)
            and all(self.agents.by_sub.get((iss, sub)) == name for iss, sub, name in caller.listed)
            and self._wall() < caller.until_s
        )  # fmt: skip

    def close(self) -> None:
        """Stop checking: what waits is refused."""
        self._scrypt.close()

    # -- what changes ------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read the agents again if their file has changed: asked by the door before it acknowledges what the board says.

        Returns whether they are known. Where the file is not there or not whole, nobody is.
        """
        try:
            with open(self._path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                head = file.read(HEAD_BYTES)
                sign = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, head)
                if sign == self._sign:
                    return not self.fault
                self._sign = sign
                agents, fault = parse(head + file.read(), str(self._path), self.agents), ""
        except OSError as error:
            self._sign = None
            agents, fault = Agents(), f"{self._path}: cannot be read: {(error.strerror or str(error)).lower()}"
        except OperatorFault as error:
            agents, fault = Agents(), str(error)
        if fault and fault != self.fault:
            log.error("%s; nobody is known", fault)
        self.agents, self.fault = agents, fault
        self._forget()
        stored = {agent.secret for agent in agents.by_name.values()}
        self._right = {secret: mark for secret, mark in self._right.items() if secret in stored}
        return not fault

    def look(self) -> None:
        """Look at the issuers' key files, and read those that have changed."""
        now = self._clock()
        for issuer in self._issuers.values():
            path = Path(issuer.said.jwks_file)
            try:
                found = path.stat()
                sign = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
                if sign == issuer.sign and not issuer.fault:
                    continue
                keys = parse_jwks(path.read_bytes(), str(path))
            except (OSError, OperatorFault) as error:
                fault = f"{path}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
                issuer.failed = issuer.failed or now
                if fault != issuer.fault:
                    log.error("%s; no token of `%s` is accepted in %g s", fault, issuer.said.url, KEEPS_S)
                issuer.fault = fault
                if issuer.keys and now - issuer.failed >= KEEPS_S:
                    issuer.keys, issuer.sign = (), None
                    self._forget()
                continue
            issuer.keys, issuer.sign, issuer.fault, issuer.failed = keys, sign, "", 0.0
            self._forget()
            log.info("issuer `%s` has %d keys", issuer.said.url, len(keys))

    async def watch(self) -> None:
        """`look` for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.look()

    @property
    def faults(self) -> list[str]:
        """What is wrong with agents and issuers, one line each, for the run file."""
        return [one for one in (self.fault, *(issuer.fault for issuer in self._issuers.values())) if one]

    def _forget(self) -> None:
        """What was remembered is looked up anew: without scrypt where the secret is known to be right."""
        self.changes += 1
        self._new, self._old = {}, {}

    def _remember(self, mark: bytes, held: Held) -> None:
        """Two halves: what was not asked for while one was filled is gone."""
        if len(self._new) >= REMEMBERED:
            self._old, self._new = self._new, {}
        self._new[mark] = held

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _of_token(self, said: Token) -> Caller:
        claimed = claimed_name(said.name) if said.name else ""
        try:
            return self._verified(said)
        except NoIdentity as fault:
            fault.claimed = fault.claimed or claimed
            raise

    def _verified(self, said: Token) -> Caller:
        token = parse_token(said.text)
        url = issuer_of(token.claims)
        issuer = self._issuers.get(url)
        if issuer is None:
            raise NoIdentity("token-issuer", f"the token's issuer `{shown(url)}` is none whose tokens are accepted here")
        key = verify(token, issuer.keys)
        until_s, issued_s = check_claims(token.claims, audience=issuer.said.audience, now_s=self._wall())
        name, session = self._named(said)
        twin = _sha256(twin_of(said.text)) if token.alg == "ES256" else ""
        return caller_of(
            token.claims, self.agents, issuer=url, until_s=until_s, issued_s=issued_s, name=name, session=session,
            token=_sha256(said.text), twin=twin, key=key.thumbprint,
        )  # fmt: skip

    def _named(self, said: Credential) -> tuple[str, str]:
        """(agent, session) of a user name: all of it where an agent is called so, else what stands around its first `+`."""
        return (said.user, "") if said.user in self.agents.by_name else (said.name, said.session)

    # -- secrets -----------------------------------------------------------------------------------------------------

    async def _of_secret(self, said: Basic) -> Caller:
        name, session = self._named(said)
        agent = self.agents.by_name.get(name)
        claimed = claimed_name(name)
        if agent is None or parameters(agent.secret) is None:
            raise NoIdentity("credential", WRONG, claimed)
        hasher = self._hasher.copy()
        hasher.update(said.password.encode())
        mark = hasher.digest()
        right = self._right.get(agent.secret)
        if right is None:
            fits = await self._scrypt.fits(name, agent.secret, said.password, mark, claimed)
            if fits:
                self._right[agent.secret] = mark
        else:
            fits = hmac.compare_digest(right, mark)
        now = self.agents.by_name.get(name)
        if not fits or now is None or now.secret != agent.secret:  # rotated or removed meanwhile
            raise NoIdentity("credential", WRONG, claimed)
        return Caller(agent=name, chain=make_chain((agent_uid(name),)), session=session, credential=_called(agent.secret))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _called(stored: str) -> str:
    """What the records call a secret: the first 32 hex digits of the hash of its stored hash."""
    return _sha256(stored)[:32]
