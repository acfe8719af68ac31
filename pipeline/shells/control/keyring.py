"""The control keys on disk: private ones 0600 in `keys/control`, and the pins that hosts and workers of this home begin with.

The log names the keys that are accepted (`key/KEYID`); the newest of them signs. A key file that the log does not name yet is
of a rotation that did not reach the journal: it is ignored. One that the log has removed is deleted.
"""

from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.control import key_id_of
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.keys import loose_mode, parse_private, private_pem, public_pem, raw_public
from schemas.process import private_dir, sync_folder, write_atomic


class Keyring:
    """The keys under one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = private_dir(home.private_key("control", "x").parent)
        self._pins = private_dir(home.trusted("control"))
        self.key_id = b""
        """Of the key that signs."""
        self._key: Ed25519PrivateKey | None = None

    def sign(self, data: bytes) -> bytes:
        """By the key that signs now."""
        assert self._key is not None
        return self._key.sign(data)

    def newest(self) -> str | None:
        """The id of the key that was made last, for a journal that names none; None when there is no key."""
        found = sorted(self._folder.glob("*.key"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1].stem if found else None

    def made(self) -> list[str]:
        """The ids of all keys here, accepted or not."""
        return sorted(path.stem for path in self._folder.glob("*.key"))

    def make(self) -> str:
        """Make a key and have it on disk; returns its id. Nobody accepts it before the log names it."""
        made = Ed25519PrivateKey.generate()
        key_id = key_id_of(raw_public(made.public_key())).hex()
        write_atomic(self._home.private_key("control", key_id), private_pem(made))
        return key_id

    def public(self, key_id: str) -> str:
        """The public half of a key, hex. Raises OperatorFault when its file is missing, loose or wrong."""
        return raw_public(self._load(key_id).public_key()).hex()

    def use(self, key_id: str) -> None:
        """Sign with this key from now on. Raises OperatorFault as `public` does."""
        self._key = self._load(key_id)
        self.key_id = bytes.fromhex(key_id)

    def pin(self, key_ids: Iterable[str]) -> None:
        """Have the public halves of these keys pinned in this home."""
        for key_id in key_ids:
            path = self._pins / f"{key_id}.pub"
            pem = public_pem(raw_public(self._load(key_id).public_key()))
            if not path.exists() or path.read_bytes() != pem:
                write_atomic(path, pem)

    def drop(self, key_ids: Iterable[str]) -> None:
        """Delete keys that are retired, and their pins."""
        for key_id in key_ids:
            for path in (self._home.private_key("control", key_id), self._pins / f"{key_id}.pub"):
                if path.exists():
                    path.unlink()
                    sync_folder(path.parent)

    def _load(self, key_id: str) -> Ed25519PrivateKey:
        path = self._home.private_key("control", key_id)
        if not path.exists():
            raise OperatorFault(f"{path}: is missing: control signs with it; restore it from the backup of this home")
        if wrong := loose_mode(path):
            raise OperatorFault(wrong)
        key = parse_private(path.read_bytes(), path)
        if key_id_of(raw_public(key.public_key())).hex() != key_id:
            raise OperatorFault(f"{path}: is the key of another name")
        return key
