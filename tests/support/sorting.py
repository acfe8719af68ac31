"""The oracle of the kernel `heads`: a section of fields read line by line in Python, and why where it is refused."""

from typing import TypeAlias

from enforcers.core.http.fields import (
    IN_ANSWERS,
    IN_REQUESTS,
    ONCE,
    BadName,
    BadRequest,
    Fault,
    Fields,
    Known,
    Role,
    name_fault,
    spaced,
    split_lines,
)

Sorted: TypeAlias = tuple[bytes, Fields, dict[int, bytes]]


def slowly(section: bytes, fault: Fault) -> Sorted:
    """As the kernel sorts it. Raises BadRequest or BadAnswer where the kernel says None."""
    known = IN_REQUESTS if fault is BadRequest else IN_ANSWERS
    try:
        return _sorted([spaced(line) for line in split_lines(section, fault)], fault, known)
    except BadName as wrong:
        raise name_fault(wrong, section, fault) from None


def _sorted(lines: list[bytes], fault: Fault, known: Known) -> Sorted:
    onward: list[bytes] = []
    trace: Fields = []
    special: dict[int, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b": ")
        role, bare = known[name], value.strip(b"\t ")
        if not role:
            onward.append(name + b": " + bare + b"\r\n")
        elif role in ONCE:
            if role in special:
                code, said = ONCE[role]
                raise fault(code, f"the head has {said} twice")
            special[role] = value
        elif role == Role.TRACE:
            trace.append((name.lower(), bare))
        elif role != Role.HOP:
            special[role] = special[role] + b", " + bare if role in special else bare
    return b"".join(onward), trace, special
