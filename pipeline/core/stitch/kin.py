"""Whom a call is made for, given who makes it and who made the call that caused it.

    own chain of the call                            effective chain                       known by
    goes on from its parent's own or effective one   the parent's, and what is behind      what proves those links
    one agent that proved only itself                the parent's, and that agent          traceparent: observed
    has the parent's root and lacks a link of it     its own                               widened
    has another root                                 its own                               forged

A single agent is no other root: it claims to act for nobody, and that somebody's call caused its own is what traceparent is
for. That does not hold where the parent was refused, so that nobody can have got its span.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.core.stitch.model import PRINCIPALS_MAX, Assurance, Cause, Who

Chain = tuple[str, ...]


class Kin(NamedTuple):
    """What a call is to the one that caused it."""

    cause: Cause
    chain: Chain
    assurance: Assurance


def kin(parent: Who, effective: Chain, out: bool, child: Who) -> Kin:
    """`effective` is the parent's effective chain, `out` whether the parent was let out."""
    own = child.chain
    if not own or not effective:
        return Kin(Cause.NONE, own or effective, Assurance.OBSERVED)
    if own[: len(effective)] == effective:
        added = len(own) - len(effective)
        return _bounded(own, own, _proved(child, added))
    if parent.chain and own[: len(parent.chain)] == parent.chain:
        added = len(own) - len(parent.chain)
        return _bounded((*effective, *own[len(parent.chain) :]), own, _proved(child, added))
    if len(own) == 1 and out:
        joined = effective if own[0] == effective[-1] else (*effective, *own)
        return _bounded(joined, own, Assurance.OBSERVED)
    same = own[0] in (effective[0], parent.chain[0] if parent.chain else "")
    return Kin(Cause.WIDER if same else Cause.ANOTHER, own, Assurance.OBSERVED)


def _bounded(chain: Chain, own: Chain, assurance: Assurance) -> Kin:
    return Kin(Cause.NONE, chain, assurance) if len(chain) <= PRINCIPALS_MAX else Kin(Cause.LONG, own, assurance)


def _proved(child: Who, added: int) -> Assurance:
    """How the last `added` links of a chain are proved: the weakest of them."""
    said: Sequence[str] = child.assurance[-added:] if added else ()
    if not said or len(child.assurance) != len(child.chain) - 1:
        return Assurance.OBSERVED
    if all(one == "signed" for one in said):
        return Assurance.SIGNED
    return Assurance.ISSUED if all(one in ("signed", "issued") for one in said) else Assurance.OBSERVED
