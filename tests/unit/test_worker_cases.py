"""What is filed: rules hear of a finding before its agent's risk is made, and what is called false is no part of one."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pipeline.shells.worker.cases import Cases
from pipeline.shells.worker.past import Word, word_of
from schemas.detectors import DENY_BURST, LEAK, RISK
from schemas.findings import Finding, finding_row
from tests.support.found import finding

LEAKS = finding(score=60.0)
BURST = finding(score=60.0, detector=DENY_BURST, subject="agent=reader")


class Store:
    """Rows in a dictionary, the last word on each."""

    def __init__(self) -> None:
        self.rows: dict[str, Finding] = {}

    def known(self, ids: Sequence[str]) -> dict[str, Word]:
        return {one: word_of(finding_row(self.rows[one], "w")) for one in ids if one in self.rows}

    def keep_findings(self, findings: Sequence[Finding]) -> None:
        for one in findings:
            assert one.id not in self.rows or one.version > self.rows[one.id].version
            self.rows[one.id] = one

    def of_agents(self, agents: Sequence[str], first_us: int, last_us: int) -> list[Finding]:
        return [one for one in self.rows.values() if one.agent in agents and first_us <= one.time_us <= last_us]

    def states(self) -> dict[str, bool]:
        return {one.detector: one.withdrawn for one in self.rows.values()}


class Rules:
    """What rules hear of, call by call."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []

    async def act(self, findings: Sequence[Finding]) -> None:
        self.heard.append(sorted(one.detector for one in findings))


def file(
    *batches: Sequence[Finding], store: Store | None = None, excepted: Callable[[], Collection[tuple[str, str]] | None] = set,
) -> tuple[Store, Rules]:  # fmt: skip
    rows, rules = store or Store(), Rules()

    async def stored(_: str, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    async def main() -> None:
        cases = Cases(rows, stored=stored, wake=lambda agent, one: None, slot="w", responder=rules, excepted=excepted)
        for batch in batches:
            await cases.file(batch)

    asyncio.run(main())
    return rows, rules


def test_rules_hear_of_what_a_detector_is_sure_of_before_the_risk_is_made() -> None:
    rows, rules = file([LEAKS, BURST])
    assert rules.heard == [[DENY_BURST, LEAK], [RISK]]
    assert rows.states() == {LEAK: False, DENY_BURST: False, RISK: False}


def test_what_is_called_false_is_no_part_of_a_risk() -> None:
    rows, rules = file([LEAKS, BURST], excepted=lambda: {(LEAK, LEAKS.subject)})
    assert rules.heard == [[DENY_BURST, LEAK]]
    assert rows.states() == {LEAK: False, DENY_BURST: False}


def test_a_risk_that_was_made_of_what_is_called_false_since_is_taken_back_with_the_next_word() -> None:
    rows, _ = file([LEAKS, BURST])
    again = finding(score=61.0, version=4, detector=DENY_BURST, subject="agent=reader")
    file([again], store=rows, excepted=lambda: {(LEAK, LEAKS.subject)})
    assert rows.states()[RISK]
    file([finding(score=62.0, version=5, detector=DENY_BURST, subject="agent=reader")], store=rows)
    assert not rows.states()[RISK], "the exception has ended"


def test_no_risk_is_made_before_it_is_known_what_is_called_false() -> None:
    answers: list[Collection[tuple[str, str]] | None] = [None, None, {(LEAK, LEAKS.subject)}]
    rows, rules = file([LEAKS, BURST], excepted=lambda: answers.pop(0))
    assert (answers, rules.heard, RISK in rows.states()) == ([], [[DENY_BURST, LEAK]], False)
