"""Who acts for whom: principals, root first, and what of them is decided.

    User::"alice" -> Agent::"planner" -> Agent::"researcher"
      root            link               link, and the one that acts

Every agent is a link, and a call passes only when each link's decision allows it: adding a link never adds rights. A human or
service is a fact about the call, no link. A chain deeper than CHAIN_LINKS_MAX is refused whole: cutting it would drop a
principal that a policy forbids.
"""

from dataclasses import dataclass
from typing import Final

from schemas.limits import CHAIN_LINKS_MAX, STRING_BYTES_MAX
from schemas.records import SEPARATOR
from schemas.vocabulary import parse_uid

DEPTH_MAX: Final = 255
"""What the depth of a record can say; it means `this or more`."""

_AGENT: Final = 'Agent::"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain as the core decides and records it. The zero value has no link, so nothing permits it."""

    links: tuple[str, ...] = ()
    """Uids of the agents, root first: what is decided. Empty when the chain is too deep."""
    agent: str = ""
    """The name of the agent that acts; empty when the last principal is no agent."""
    root: str = ""
    """The uid of the first principal."""
    depth: int = 0
    """Principals, the root included."""
    principals: tuple[str, ...] = ()
    """All uids, root first, however many: any of them may be revoked."""
    text: str = ""
    """All uids joined by SEPARATOR: whole, or empty when that has more than STRING_BYTES_MAX bytes."""
    too_deep: bool = False


def make_chain(principals: tuple[str, ...]) -> Chain:
    """Read principal uids, root first, the acting one last.

    Nobody at all, or a last principal that is no agent, gives a chain without links: nobody acts, so it is refused.
    """
    if not principals:
        return Chain()
    text = SEPARATOR.join(principals)
    acting = principals[-1]
    too_deep = len(principals) > CHAIN_LINKS_MAX
    acts = acting.startswith(_AGENT)
    return Chain(
        links=tuple(uid for uid in principals if uid.startswith(_AGENT)) if acts and not too_deep else (),
        agent=parse_uid(acting)[1] if acts else "",
        root=principals[0],
        depth=min(len(principals), DEPTH_MAX),
        principals=principals,
        text=text if len(text.encode()) <= STRING_BYTES_MAX else "",
        too_deep=too_deep,
    )
