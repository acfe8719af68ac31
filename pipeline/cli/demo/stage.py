"""The demo's home: its configuration, policies, the issuer that signs who acts for whom, and two weeks of ordinary work.

A home that holds something else is left alone. One in which the demo was played before is played in again, with other agents
and another domain of the attacker (`assistant-2`, ...): for the old ones the story has been told.
"""

import base64
import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.cli.common import open_home
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import private_dir, read_run_file, write_atomic
from schemas.vocabulary import agent_uid, host_uid, user_uid

OWNER: Final = "acme.example"
PARTNER: Final = "partner.example"
ROOT: Final = "alice"
ISSUER: Final = "https://idp.acme.example"
AUDIENCE: Final = "https://egress.acme.example"
TOKEN_S: Final = 3_600
REVOKED_S: Final = 86_400
"""How long what a rule revokes stays revoked: whoever asks the home again tomorrow still finds it."""

DAYS: Final = 14
SEED: Final = 6

CONFIG: Final = """\
# Written by `wardline demo`. The name server and the origins are the demo's own and live as long as it does.
[egress]
allow_addresses = ["127.0.0.1/32:{port}"]
dns_servers = ["{name_server}"]

[[issuer]]
url = "{issuer}"
audience = "{audience}"
jwks_file = {jwks}

# whoever's findings add up is stopped, wherever it stands in a chain
[[respond]]
name = "turned"
finding = "risk"
revoke = "agent"
cascade = true
for_s = {seconds}

# a credential that turns up where its holder is not
[[respond]]
name = "stolen"
finding = "second-holder"
min_score = 70
revoke = "credential"
for_s = {seconds}
"""

POLICIES: Final = """\
// Written by `wardline demo`.

@id("staff-reads")
@reason("the company's own pages, and those of partners")
permit (principal in AgentGroup::"staff", action in Action::"http:read", resource in DomainGroup::"reading");

@id("assistants-write-tickets")
permit (principal in AgentGroup::"assistants", action in Action::"http:write", resource in Domain::"acme.example");
"""


@dataclass(frozen=True, slots=True)
class Cast:
    """The agents of one play, and the attacker's domain."""

    assistant: str
    researcher: str
    attacker: str

    @property
    def agents(self) -> tuple[str, str]:
        """Both."""
        return self.assistant, self.researcher

    def subject(self, agent: str) -> str:
        """What the issuer calls an agent."""
        return f"{agent}@{OWNER}"


class Stage:
    """One play's home, before anything runs in it."""

    def __init__(self, home: Home) -> None:
        """Raises OperatorFault for a home that is not the demo's, or in which something runs."""
        self.home = home
        self._file = home.root / "demo.json"
        open_home(home)
        if not self._file.exists() and any(path.name != "secrets" for path in home.root.iterdir()):
            raise OperatorFault(f"`{home.root}` holds something else: the demo needs a folder of its own (--home)")
        said = read_run_file(home.run_file("up"))
        if said is not None and said["alive"]:
            raise OperatorFault(f"`{home.root}` is held by process {said['pid']}, `wardline up`: stop it first")
        number = json.loads(self._file.read_bytes())["plays"] + 1 if self._file.exists() else 1
        write_atomic(self._file, json.dumps({"plays": number}).encode())
        end = f"-{number}" if number > 1 else ""
        self.cast = Cast(f"assistant{end}", f"researcher{end}", f"cdn-telemetry{end}.example")
        self._number = number
        self._key = Ed25519PrivateKey.generate()

    def write(self, port: int, name_server: str) -> None:
        """Configuration, key set and policies, for origins on one port."""
        raw = self._key.public_key().public_bytes_raw()
        jwk = {"kty": "OKP", "crv": "Ed25519", "kid": f"demo-{self._number}", "use": "sig", "x": _b64(raw)}
        jwks = self.home.root / "idp.jwks.json"
        write_atomic(jwks, json.dumps({"keys": [jwk]}).encode())
        text = CONFIG.format(port=port, name_server=name_server, issuer=ISSUER, audience=AUDIENCE,
                             jwks=json.dumps(str(jwks)), seconds=REVOKED_S)  # fmt: skip
        write_atomic(self.home.config, text.encode())
        folder = private_dir(self.home.policies)
        write_atomic(folder / "demo.cedar", POLICIES.encode())
        write_atomic(folder / "entities.json", json.dumps(self._entities(), indent=1).encode())

    def _entities(self) -> list[dict[str, Any]]:
        def entity(kind: str, name: str, *groups: tuple[str, str]) -> dict[str, Any]:
            return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": [{"type": t, "id": i} for t, i in groups]}

        staff, reading = ("AgentGroup", "staff"), ("DomainGroup", "reading")
        made = [entity("Domain", domain, reading) for domain in (OWNER, PARTNER)]
        for number in range(1, self._number + 1):
            end = f"-{number}" if number > 1 else ""
            made += [entity("Agent", f"assistant{end}", staff, ("AgentGroup", "assistants")),
                     entity("Agent", f"researcher{end}", staff)]  # fmt: skip
        return made

    def token(self, *agents: str) -> str:
        """What proves the last of some agents, each handed the task by the one before it, all for the root (RFC 8693)."""
        act: dict[str, Any] = {}
        for agent in agents:
            act = {"sub": self.cast.subject(agent)} | ({"act": act} if act else {})
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": ROOT, "aud": AUDIENCE, "iat": now, "exp": now + TOKEN_S, "act": act}
        head = {"alg": "EdDSA", "kid": f"demo-{self._number}", "typ": "at+jwt"}
        signed = f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(claims).encode())}"
        return f"{signed}.{_b64(self._key.sign(signed.encode()))}"

    def write_history(self, path: Path, port: int) -> int:
        """What both agents have done on every day of two weeks, as recorded calls; returns how many."""
        lines = list(self._history(port))
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return len(lines)

    def _history(self, port: int) -> list[dict[str, Any]]:
        dice, made = random.Random(SEED), []
        assistant, researcher = map(agent_uid, self.cast.agents)
        today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        for day in range(DAYS, 0, -1):
            for task in range(dice.randint(3, 5)):
                at = today - timedelta(days=day) + timedelta(minutes=dice.uniform(0, 60 * task + 60))
                steps = (
                    (self.cast.assistant, "GET", "docs"), (self.cast.assistant, "GET", "tickets"),
                    (self.cast.assistant, "POST", "agents"), (self.cast.researcher, "GET", "docs"),
                    (self.cast.researcher, "GET", "reports"), (self.cast.assistant, "POST", "tickets"),
                )  # fmt: skip
                for agent, verb, label in steps:
                    at += timedelta(seconds=dice.uniform(0.2, 3))
                    chain = [user_uid(ROOT), assistant, *([researcher] if agent == self.cast.researcher else [])]
                    made.append({
                        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "agent": agent, "chain": chain,
                        "session": f"day-{day}-task-{task}", "action": f"http:{verb}",
                        "resource": host_uid(f"{label}.{PARTNER if label == 'reports' else OWNER}", port), "status": 200,
                        "bytes_out": dice.randint(200, 700), "bytes_in": dice.randint(300, 9_000),
                        "duration_ms": round(dice.uniform(2, 40), 1),
                    })  # fmt: skip
        return sorted(made, key=lambda line: str(line["time"]))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
