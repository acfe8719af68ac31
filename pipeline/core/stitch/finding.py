"""What is wrong with a trace, as a finding: calls that act for another root, or for fewer principals than what caused them.

    forged   90     a circle of parents, another root than the cause's, another root without a cause (once the trace is quiet)
    widened  80

One finding a trace; its evidence is how many calls have each cause, and the first of them with both chains.
"""

from typing import Any, Final

import numpy as np

from pipeline.core.stitch.model import WORDS, Cause, Grade, Judged
from pipeline.core.stitch.rows import Facts
from schemas.findings import CHAIN, Finding, Term, some_calls
from schemas.records import call_id

FORGED_POINTS: Final = 90.0
WIDENED_POINTS: Final = 80.0

EXAMPLES_MAX: Final = 5
CHAIN_CHARS_MAX: Final = 600
"""Characters of a chain in evidence: its record has it whole."""


def offence(judged: Judged, trace: int, low: int, high: int) -> int:
    """A number for what the finding of a trace (rows `low` to `high`) says: another where it says something else, 0 where no
    call is forged or widened. How many are is not enough: one call more may explain a call, and make another one wrong."""
    calls = judged.calls
    bad = low + np.flatnonzero(judged.grade[low:high] >= Grade.WIDENED)
    if not len(bad):
        return 0
    up = judged.parent[bad[:EXAMPLES_MAX]]
    known = up[up >= 0]
    chains = tuple(judged.chains[number] for number in judged.chain[[judged.first[trace], *known]].tolist())
    columns = (calls.boot[bad], calls.seq[bad], judged.cause[bad], up >= 0, calls.boot[known], calls.seq[known])
    return hash((chains, *(column.tobytes() for column in columns))) & 0xFFFF_FFFF_FFFF_FFFF | 1


def chain_finding(judged: Judged, facts: Facts, trace: int, low: int, high: int) -> Finding:
    """The finding of a trace with a call that is forged or widened; one that has none any more takes an earlier one back."""
    calls = judged.calls
    grade = judged.grade[low:high]
    bad = low + np.flatnonzero(grade >= Grade.WIDENED)
    forged, widened = (int(np.count_nonzero(grade == one)) for one in (Grade.FORGED, Grade.WIDENED))
    name = facts.ids[trace].tobytes().hex()
    shown = bad if len(bad) else np.arange(low, min(high, low + 1))
    lead = int(shown[0])
    who = facts.whos[int(calls.who[lead])]
    begins = int(judged.first[trace])
    terms = tuple(
        Term(name=word, value=float(many), points=points, why=f"{many} call{'s' if many > 1 else ''}, {why}")
        for word, many, points, why in (
            ("forged", forged, FORGED_POINTS, "for another root principal than the trace's"),
            ("widened", widened, WIDENED_POINTS, "for fewer principals than the call that caused it"),
        )
        if many
    )
    causes, many_of = np.unique(judged.cause[bad], return_counts=True)
    evidence: dict[str, Any] = {
        "trace_id": name,
        "root": _text(judged.chains[int(judged.chain[begins])][:1]),
        "causes": {Cause(one).name.lower(): many for one, many in zip(causes.tolist(), many_of.tolist(), strict=True)},
        "forged": forged,
        "widened": widened,
        "calls": [_example(judged, facts, row) for row in bad[:EXAMPLES_MAX].tolist()],
    }
    word = "forged" if forged else "widened"
    title = f"trace {name}: {WORDS[Cause(int(judged.cause[lead]))]}" if len(bad) else f"trace {name}: nothing any more"
    return Finding(
        detector=CHAIN, subject=f"trace={name}", window_us=0, version=int(facts.version[trace]),
        started_us=int(calls.start[low:high].min()), ended_us=int(np.maximum(calls.start, calls.end)[low:high].max()),
        time_us=int(calls.start[lead]), terms=terms, evidence=evidence,
        title=f"{title} ({word}, call {_id(judged, lead)})" if len(bad) else title, agent=who.agent if len(bad) else "",
        enforcer=facts.enforcers[int(facts.enforcer[lead])],
        calls=some_calls([_id(judged, row) for row in shown.tolist()]), calls_count=len(shown), withdrawn=not len(bad),
        tenant=who.tenant,
    )  # fmt: skip


def _example(judged: Judged, facts: Facts, row: int) -> dict[str, Any]:
    up = int(judged.parent[row])
    return {
        "call": _id(judged, row),
        "cause": Cause(int(judged.cause[row])).name.lower(),
        "chain": _text(facts.whos[int(judged.calls.who[row])].chain),
        "parent": _id(judged, up) if up >= 0 else "",
        "parent_chain": _text(judged.chains[int(judged.chain[up])]) if up >= 0 else "",
    }


def _id(judged: Judged, row: int) -> str:
    return call_id(int(judged.calls.boot[row]), int(judged.calls.seq[row]))


def _text(chain: tuple[str, ...]) -> str:
    text = " -> ".join(chain)
    return text if len(text) <= CHAIN_CHARS_MAX else f"{text[: CHAIN_CHARS_MAX - 3]}..."
