"""Who acts, by number: a call in memory has four bytes for its chain, however long that is."""

from collections.abc import Iterable
from typing import Final

from pipeline.core.stitch.model import Who
from schemas.errors import AgentFault
from schemas.records import SEPARATOR
from schemas.vocabulary import parse_uid

ENTRY_BYTES: Final = 400
"""What an entry costs beside its texts, about."""

_AGENT: Final = 'Agent::"'


def make_who(tenant: str, chain: tuple[str, ...], assurance: tuple[str, ...]) -> Who:
    """From the texts of a record."""
    agent = ""
    if chain and chain[-1].startswith(_AGENT):
        try:
            agent = parse_uid(chain[-1])[1]
        except AgentFault:
            agent = chain[-1]
    return Who(tenant, chain, assurance, agent, sum(uid.startswith(_AGENT) for uid in chain))


class Whos:
    """Numbers for texts. One that nobody names is let go by `keep`."""

    def __init__(self) -> None:
        self.by_number: dict[int, Who] = {}
        self.bytes = 0
        """Of all entries, about."""
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._keys: dict[int, tuple[str, str, str]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, tenant: str, chain: str, assurance: str) -> int:
        """The number of a record's texts, from now on."""
        key = (tenant, chain, assurance)
        found = self._numbers.get(key)
        if found is None:
            found = self._free.pop() if self._free else len(self._numbers)
            self._numbers[key] = found
            self._keys[found] = key
            self.by_number[found] = make_who(tenant, _split(chain), _split(assurance))
            self.bytes += _size(key)
        return found

    def keep(self, numbers: Iterable[int]) -> None:
        """Let go of every other."""
        for number in self._keys.keys() - set(numbers):
            key = self._keys.pop(number)
            del self._numbers[key], self.by_number[number]
            self._free.append(number)
            self.bytes -= _size(key)

    def clear(self) -> None:
        """Let go of all."""
        self.keep(())
        self._free.clear()


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(SEPARATOR)) if text else ()


def _size(key: tuple[str, str, str]) -> int:
    return ENTRY_BYTES + 2 * sum(map(len, key))
