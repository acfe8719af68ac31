"""Ed25519 keys as files: private PKCS8 PEM, 0600, made at the first start; public PEM, pinned by file on the other side."""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.control import key_id_of
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.process import private_dir, write_atomic

Verify = Callable[[bytes, bytes], None]

QUERY_KEY_BYTES: Final = 32


def loose_mode(path: Path) -> str | None:
    """What is wrong with the mode of a secret file, as one line; None when only its owner can read it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return f"{path}: mode is {mode:04o}, must be 0600"
    if found.st_uid != os.geteuid():
        return f"{path}: belongs to user id {found.st_uid}, must be ours ({os.geteuid()})"
    return None


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """A private key as its file holds it."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def parse_private(pem: bytes, where: Path) -> Ed25519PrivateKey:
    """The private key in `pem`. Raises OperatorFault naming `where` it was found."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise OperatorFault(f"{where}: is no private key") from fault
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorFault(f"{where}: is no Ed25519 key")
    return key


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes that a control entry says of a key."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def public_pem(raw: bytes) -> bytes:
    """A public key of 32 bytes as it is pinned. Raises ValueError when it is none."""
    key = Ed25519PublicKey.from_public_bytes(raw)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_public(pem: bytes) -> bytes:
    """The 32 bytes of a pinned public key. Raises ValueError when it is none."""
    try:
        key = serialization.load_pem_public_key(pem)
    except UnsupportedAlgorithm as fault:
        raise ValueError(str(fault)) from fault
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("no Ed25519 key")
    return raw_public(key)


def pinned(folder: Path) -> dict[str, bytes]:
    """Name -> raw public key of each `NAME.pub` in a folder of pinned keys, which need not exist.

    Raises OperatorFault for a file that is no Ed25519 key: trust that is not what somebody meant it to be.
    """
    found = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            found[path.stem] = parse_public(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as fault:
            raise OperatorFault(f"{path}: is no Ed25519 public key") from fault
    return found


def control_pins(home: Home) -> dict[bytes, bytes]:
    """Key id -> raw public key of the control keys that are trusted by file. Raises OperatorFault as `pinned` does."""
    return {key_id_of(public): public for public in pinned(home.trusted("control")).values()}


def own_key(home: Home, role: str, name: str) -> Ed25519PrivateKey:
    """Load the signing key of a host or worker (`role` is `hosts` or `workers`), making and pinning it at the first start.

    Raises OperatorFault when the file has a loose mode or is no Ed25519 key. A crash between the two files is repaired by the
    next start, which pins again from the private one.
    """
    path = home.private_key(role, name)
    private_dir(path.parent)
    if not path.exists():
        write_atomic(path, private_pem(Ed25519PrivateKey.generate()))
    if wrong := loose_mode(path):
        raise OperatorFault(wrong)
    key = parse_private(path.read_bytes(), path)
    pin = private_dir(home.trusted(role)) / f"{name}.pub"
    public = public_pem(raw_public(key.public_key()))
    if not pin.exists():
        write_atomic(pin, public)
    elif pin.read_bytes() != public:
        raise OperatorFault(f"{pin}: is not the public half of {path}; remove the one that is wrong")
    return key


def query_key(home: Home) -> bytes:
    """What the hashes of queries are keyed with, made by whoever asks first.

    Raises OperatorFault when the file has a loose mode or another length.
    """
    path = home.query_key
    if not path.exists():
        beside = private_dir(path.parent) / f".{path.name}.{secrets.token_hex(8)}"
        write_atomic(beside, secrets.token_bytes(QUERY_KEY_BYTES))
        with contextlib.suppress(FileExistsError):  # somebody else was first, and has perhaps hashed with it already
            os.link(beside, path)
        beside.unlink()
    if wrong := loose_mode(path):
        raise OperatorFault(wrong)
    key = path.read_bytes()
    if len(key) != QUERY_KEY_BYTES:
        raise OperatorFault(f"{path}: has {len(key)} bytes, must have {QUERY_KEY_BYTES}; remove it, and another is made")
    return key


class Trust:
    """The pinned public keys of one role. A name that is not known is looked up again, so that a new peer needs no restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Verify] = {}

    def verifier(self, name: str) -> Verify | None:
        """`verify(signature, message)` of one peer, or None when nothing is pinned under that name."""
        if name not in self._known:
            if not name or "/" in name or name.startswith("."):
                return None
            try:
                raw = parse_public((self._folder / f"{name}.pub").read_bytes())
            except (OSError, ValueError):
                return None
            self._known[name] = Ed25519PublicKey.from_public_bytes(raw).verify
        return self._known[name]
