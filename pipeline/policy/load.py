"""A folder of policies: every `*.cedar` in it (in the order of their names) and `entities.json`. Subfolders are not read.

No folder and no policies are no errors: such a set permits nothing, so every call is refused. A file that cannot be read is
an error, never an empty file: it may hold the forbid that matters.
"""

import stat
from pathlib import Path
from typing import Final

from pipeline.policy.compile import PolicySet, compile_set
from pipeline.policy.lex import Source
from schemas.bundle import Bundle
from schemas.errors import OperatorFault
from schemas.limits import POLICY_FILE_BYTES_MAX

ENTITIES: Final = "entities.json"
SUFFIX: Final = ".cedar"


def load_bundle(folder: Path) -> Bundle:
    """Compile the policies of a folder. Raises OperatorFault, one line that names file, line and column, when they are wrong.

    A missing folder and one without policies give the empty bundle, which permits nothing: `statement` says so to a person.
    """
    return load_set(folder).bundle


def load_set(folder: Path) -> PolicySet:
    """As `load_bundle`, with the numbers of policies and entities."""
    return compile_set(*read_folder(folder))


def read_folder(folder: Path) -> tuple[list[Source], Source | None]:
    """The texts of a folder: its policy files in the order of their names, and its entities. Raises OperatorFault."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return [], None
    except OSError as fault:
        raise OperatorFault(f"{folder}: cannot be read: {_why(fault)}") from fault
    policies = [_read(folder / name) for name in names if name.endswith(SUFFIX)]
    return policies, _read(folder / ENTITIES) if ENTITIES in names else None


def statement(folder: Path, known: PolicySet) -> str:
    """One plain line about a set: what it is, or that it refuses everything."""
    numbers = f"{_many(known.policies, 'policy', 'policies')}, {_many(known.entities, 'entity', 'entities')}"
    line = f"{folder}: {numbers}, digest {known.bundle.digest}"
    if not any(not rule.forbid for rule in known.bundle.rules):
        return f"{line}: nothing is permitted, so every call is refused"
    return line


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _read(path: Path) -> Source:
    if not path.name.isprintable():
        raise OperatorFault(f"{path.parent}: file name {path.name!a} has a character that is not printable")
    try:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            raise OperatorFault(f"{path}: is a symbolic link: put the file itself here")
        if not stat.S_ISREG(about.st_mode):
            raise OperatorFault(f"{path}: is not a regular file")
        with path.open("rb") as file:
            data = file.read(POLICY_FILE_BYTES_MAX + 1)
    except OSError as fault:
        raise OperatorFault(f"{path}: cannot be read: {_why(fault)}") from fault
    if len(data) > POLICY_FILE_BYTES_MAX:
        size = max(about.st_size, len(data))
        raise OperatorFault(f"{path}: has {size} bytes, limit is {POLICY_FILE_BYTES_MAX}")
    try:
        return Source(str(path), data.decode())
    except UnicodeDecodeError as fault:
        before = data[: fault.start]
        line, column = before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        raise OperatorFault(f"{path}:{line}:{column}: byte 0x{data[fault.start]:02x} is not utf-8") from fault


def _why(fault: OSError) -> str:
    return (fault.strerror or str(fault)).lower()
