"""Where things lie under one home folder. Names only: whoever opens them makes them, folders 0700, secrets 0600.

    wardline.toml               the configuration (optional)      policies/*.cedar, policies/entities.json
    run/NAME.json               one per living process: name, pid, state, address, metrics, and its own figures
    run/NAME.lock, up.lock      held (flock) by the one process of that name
    run/door-N.claim            held by whoever starts the door of that name, a host or a replay
    log/NAME.log                what a supervised process printed
    secrets/{writer,reader}.password
    keys/hosts/NAME.key         Ed25519 private keys, PKCS8 PEM   keys/workers/NAME.key
    trust/hosts/NAME.pub        what the other side pins, PEM     trust/workers/NAME.pub
    keys/control/KEYID.key      the control keys                  trust/control/KEYID.pub
    control/journal.sqlite      every change, in order; control/head.json says how far it goes at least
    run/control.sock            control's API, for this user alone
    hosts/NAME/lock             held by whoever runs (or has adopted) this host
    hosts/NAME/doors/BOOT/      a door's spool: 00000001.seg ..., door.json when it is closed
    hosts/NAME/outbox/          cuts: 00000001.box ..., checkpoint.json
    hosts/NAME/bundle/DIGEST.json    the compiled policies that its doors run
    hosts/NAME/board            what every door reads before it decides (shared memory), with board.tableN
    hosts/NAME/doors/BOOT/seen  what that door has applied (shared memory, one writer)
    hosts/NAME/agents.json      the agents and what proves each, for its doors
    run/door-N.sock             a door's proxy, for this user alone
    secrets/query.key           what the hashes of queries are keyed with
    secrets/agents/NAME.secret  the credential of an agent, where `agent add --keep` has put it for `wardline run`
    hosts/NAME/feed.json        the last epoch and heartbeat that this host accepted, and the keys it then knew
    faust/SLOT/registry.json    the hosts that this worker knows, and how far it has heard control
    siem/NAME.json              how far each sink of security events is
    store/                      the embedded store's data         replay/DIGEST.json    the last run of a replayed file
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The paths under `root`."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.root / "wardline.toml"

    @property
    def policies(self) -> Path:
        """The folder of policy files and `entities.json`."""
        return self.root / "policies"

    @property
    def run(self) -> Path:
        """What lives now."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """What supervised processes print."""
        return self.root / "log"

    @property
    def store(self) -> Path:
        """The embedded store's data."""
        return self.root / "store"

    @property
    def replay(self) -> Path:
        """The last run of each replayed file."""
        return self.root / "replay"

    @property
    def hosts(self) -> Path:
        """One folder per enforcer host."""
        return self.root / "hosts"

    @property
    def siem(self) -> Path:
        """One file per sink of security events: how far it is."""
        return self.root / "siem"

    def host(self, name: str) -> Path:
        """The state of one enforcer host."""
        return self.hosts / name

    @property
    def control(self) -> Path:
        """Control's journal."""
        return self.root / "control"

    @property
    def control_socket(self) -> Path:
        """Where control listens for commands of this user."""
        return self.run / "control.sock"

    def board(self, name: str) -> Path:
        """What the doors of a host read before every decision."""
        return self.host(name) / "board"

    def agents(self, name: str) -> Path:
        """The agents that the doors of a host know."""
        return self.host(name) / "agents.json"

    @property
    def query_key(self) -> Path:
        """What the hashes of queries are keyed with: 32 bytes, the same for all doors of this home."""
        return self.root / "secrets" / "query.key"

    @property
    def agent_secrets(self) -> Path:
        """The folder of credentials that were kept for `wardline run`."""
        return self.root / "secrets" / "agents"

    def door_socket(self, name: str) -> Path:
        """Where door `name` listens beside its port: the only way out of `wardline run --contain`."""
        return self.run / f"{name}.sock"

    def password(self, user: str) -> Path:
        """The file that holds the password of the store's `writer` or `reader`."""
        return self.root / "secrets" / f"{user}.password"

    def private_key(self, role: str, name: str) -> Path:
        """The signing key of a host or worker; `role` is `hosts`, `workers` or `control`."""
        return self.root / "keys" / role / f"{name}.key"

    def trusted(self, role: str) -> Path:
        """The folder of pinned public keys, one `NAME.pub` each; `role` is `hosts`, `workers` or `control`."""
        return self.root / "trust" / role

    def run_file(self, name: str) -> Path:
        """What process `name` says of itself."""
        return self.run / f"{name}.json"
