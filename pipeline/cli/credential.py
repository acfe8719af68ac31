"""An agent's credential on this machine: where `wardline run` finds it, and the file in the home that `--keep` writes.

    1. --credential-file FILE            0600, ours; one line: the secret, or a signed token
    2. WARDLINE_CREDENTIAL               taken out of the program's environment
    3. secrets/agents/NAME.secret        in the home, where `wardline agent add NAME --keep` has put it

It never stands in the arguments of a process, which everybody on a machine can read.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pipeline.cli.proxyenv import CREDENTIAL
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.keys import loose_mode
from schemas.process import private_dir, sync_folder
from schemas.vocabulary import shown

CREDENTIAL_BYTES_MAX: Final = 16 << 10
"""A signed token may be long; what is longer than this is no credential but the wrong file."""

FILE_NAME_BYTES_MAX: Final = 240
"""So that the name with its endings is one that a file may have."""


def kept_path(home: Home, agent: str) -> Path:
    """Where the credential of an agent is kept. Raises OperatorFault for a name that is too long for a file's."""
    name = quote(agent, safe="@+,=")
    if len(name) > FILE_NAME_BYTES_MAX:
        raise OperatorFault(f"the credential of `{shown(agent)}` cannot be kept: its name is too long for a file")
    return home.agent_secrets / f"{name}.secret"


def credential_of(home: Home, agent: str, file: str | None, environ: Mapping[str, str]) -> str:
    """The credential of an agent, from the first place of the three that is there. Raises OperatorFault."""
    if file:
        return _read(Path(file).expanduser())
    if CREDENTIAL in environ:
        return _checked(environ[CREDENTIAL], CREDENTIAL)
    path = kept_path(home, agent)
    if not path.exists():
        raise OperatorFault(
            f"there is no credential of agent `{shown(agent)}`: give --credential-file or {CREDENTIAL}, "
            "or have it kept in the home (`wardline agent add NAME --keep`, or `agent rotate`)"
        )
    return _read(path)


def _read(path: Path) -> str:
    try:
        # the mode is looked at before and the owner is ours, so that nobody else can change it between
        if wrong := loose_mode(path):
            raise OperatorFault(wrong)
        with path.open("rb") as file:
            data = file.read(CREDENTIAL_BYTES_MAX + 1)
    except OSError as fault:
        raise OperatorFault(f"{path}: cannot be read: {(fault.strerror or str(fault)).lower()}") from fault
    return _checked(data.decode("ascii", "replace"), str(path))


def _checked(text: str, where: str) -> str:
    """What is wrong with a credential never shows any of it."""
    text = text.strip()
    if len(text) > CREDENTIAL_BYTES_MAX:
        raise OperatorFault(f"{where}: has more than {CREDENTIAL_BYTES_MAX} bytes, which no credential has")
    if not text:
        raise OperatorFault(f"{where}: is empty")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise OperatorFault(f"{where}: is no credential: it may have printable ASCII without spaces, on one line")
    return text


class Keeper:
    """Writes the credential that a change makes into the home, so that neither can be without the other.

    It is written beside its place before the change is asked for, and moved there when the change is in force. A crash in
    between leaves `NAME.secret.new`, which nobody reads; the user who does not know whether the change was made finds the
    secret there.
    """

    def __init__(self, home: Home, agent: str) -> None:
        self.path = kept_path(home, agent)
        self._beside = self.path.with_name(f"{self.path.name}.new")

    def write(self, secret: str) -> None:
        """Before the change."""
        private_dir(self.path.parent)
        handle = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            os.fchmod(handle, 0o600)
            file.write(secret + "\n")
            file.flush()
            os.fsync(handle)

    def settle(self) -> None:
        """The change is in force."""
        os.replace(self._beside, self.path)
        sync_folder(self.path.parent)

    def drop(self) -> None:
        """The change was not made."""
        with contextlib.suppress(OSError):
            self._beside.unlink()


def forget(home: Home, agent: str) -> None:
    """The credential of an agent has ended: whatever is kept of it goes."""
    with contextlib.suppress(OperatorFault):  # a name that no file can have was never kept
        path = kept_path(home, agent)
        for one in (path, path.with_name(f"{path.name}.new")):
            one.unlink(missing_ok=True)
