"""What the matcher does at its edges: its cache, texts that are no uids, bundles that are none."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.decide import Matcher
from schemas.bundle import Bundle, Rule, parse_bundle, pieces
from schemas.errors import OperatorFault
from schemas.limits import STRING_BYTES_MAX
from schemas.records import Decision, Verdict
from schemas.vocabulary import implied_parents
from tests.support.policies import make_case

AGENT = 'Agent::"a"'
CALL = 'Action::"mcp:tools/call"'
TOOL = 'Tool::"s/t"'
CACHE_MAX = 16_384
KEY_BYTES_MAX = 1024
BECAUSE_MAX = 256

PERMIT = Rule(id="p", forbid=False, resource=("in", 'McpServer::"s"'))


def matcher(*rules: Rule, **parents: tuple[str, ...]) -> Matcher:
    return Matcher(Bundle(rules=rules, parents=parents).encode())


def copy_of(text: str) -> str:
    """Equal, and another object."""
    return "".join(list(text))


def test_a_second_question_gets_the_same_object() -> None:
    one = matcher(PERMIT)
    first = one.decide((AGENT,), CALL, TOOL)
    assert first is one.decide((copy_of(AGENT),), copy_of(CALL), copy_of(TOOL))
    assert (one.misses, one.cached) == (1, 1)


def test_equal_texts_in_other_places_are_another_question() -> None:
    one = matcher(PERMIT)
    for links in ((AGENT,), (AGENT, AGENT), (AGENT, 'Agent::"b"'), ('Agent::"b"', AGENT)):
        one.decide(links, CALL, TOOL)
    one.decide((AGENT,), CALL, 'Tool::"s/u"')
    one.decide((AGENT,), 'Action::"mcp:ping"', TOOL)
    one.decide((CALL,), AGENT, TOOL)
    assert one.misses == 7


def test_the_cache_stays_bounded_and_right_under_a_flood_of_new_texts() -> None:
    one = matcher(PERMIT, Rule(id="f", forbid=True, resource=("==", 'Tool::"s/no"')))
    for number in range(6 * CACHE_MAX):
        server = "s" if number % 2 else "other"
        assert one.decide((AGENT,), CALL, f'Tool::"{server}/{number}"').reason == ("permit" if number % 2 else "no-permit")
        if number % 1000 == 0:
            assert one.decide((AGENT,), CALL, 'Tool::"s/no"').because == ("f",)
    assert 0.95 * CACHE_MAX < one.cached <= CACHE_MAX


def test_no_text_of_a_call_is_held() -> None:
    one = matcher(PERMIT)
    action = copy_of(CALL)
    before = sys.getrefcount(action)
    for number in range(3 * CACHE_MAX):
        one.decide((AGENT,), action, f'Tool::"s/{number}"')
    assert one.cached > 0.9 * CACHE_MAX
    assert sys.getrefcount(action) == before


def test_questions_with_one_answer_share_it() -> None:
    one = matcher(PERMIT, Rule(id="f", forbid=True, resource=("==", 'Tool::"s/no"')))
    assert one.decide((AGENT,), CALL, TOOL) is one.decide((AGENT,), CALL, 'Tool::"s/u"')
    assert one.decide((AGENT,), CALL, 'Tool::"s/no"') is not one.decide((AGENT,), CALL, TOOL)
    assert one.misses == 3


@pytest.mark.parametrize("more", [0, 1])
def test_a_decision_is_kept_up_to_256_policies(more: int) -> None:
    one = matcher(*(Rule(id=f"p{number:03}", forbid=False) for number in range(BECAUSE_MAX + more)))
    for _ in range(2):
        assert len(one.decide((AGENT,), CALL, TOOL).because) == BECAUSE_MAX + more
    assert (one.cached, one.misses) == ((1, 1) if not more else (0, 2))


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("letter", ["t", "é", "€", "😀"])
def test_a_question_is_kept_up_to_1024_bytes(letter: str, more: int) -> None:
    one = matcher(PERMIT)
    links = ('Agent::"x"', 'Agent::"y"')
    width = {"t": 1, "é": 1, "€": 2, "😀": 4}[letter]  # of each character of a text that has this one
    room = (KEY_BYTES_MAX - sum(map(len, links)) - len(CALL)) // width
    tool = f'Tool::"s/{letter * (room - 10 + more)}"'
    for _ in range(2):
        assert one.decide(links, CALL, tool).reason == "permit"
    assert (one.cached, one.misses) == ((1, 1) if not more else (0, 2))


NO_UIDS = (
    "", "a", "Agent", 'Agent::"', 'Agent::""x', 'Agent::"a', 'Agent:"a"', 'Agent::a"', '::"a"', '1Agent::"a"', 'Ag ent::"a"',
    'Agent::"a"b"', 'Agent::"a\\"', 'Agent::"\\u{61}"', "Agent::\"\\'\"", 'Agent::"\n"', 'Agent::"\x1f"', 'Agent::"\x7f"',
    'Agent::"\x85"', 'Agent::"\ud800"', 'in::"a"', 'A::true::"a"', '__cedar::"a"', 'A::::"a"', 'Ä::"a"', 'Agent::"\\q"',
)  # fmt: skip


@pytest.mark.parametrize("text", NO_UIDS, ids=ascii)
def test_a_text_that_is_no_uid_in_its_one_spelling_is_denied_whatever_is_permitted(text: str) -> None:
    one = matcher(Rule(id="all", forbid=False))
    for question in (((text,), CALL, TOOL), ((AGENT, text), CALL, TOOL), ((AGENT,), text, TOOL), ((AGENT,), CALL, text)):
        decision = one.decide(*question)
        assert (decision.verdict, decision.reason, decision.because) == (Verdict.DENY, "identity", ())
    assert one.cached == 0


ODD = ('_x::"a"', 'a::"a"', 'A_1::B::"a"', 'Agent::""', 'Agent::"\\\\\\"\\u{1f}\\n"', 'Agent::"é\u2028"')


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_an_odd_uid_in_its_one_spelling_is_decided(text: str) -> None:
    one = matcher(Rule(id="this", forbid=False, principal=("==", text)))
    assert one.decide((text,), CALL, TOOL).because == ("this",)


@pytest.mark.parametrize("more", [0, 1])
def test_a_uid_has_at_most_4096_characters_so_that_no_forbid_on_its_server_is_missed(more: int) -> None:
    one = matcher(Rule(id="all", forbid=False), Rule(id="no", forbid=True, resource=("in", 'McpServer::"s"')))
    tool = 'Tool::"s/' + "t" * (STRING_BYTES_MAX - len('Tool::"s/"') + more) + '"'
    assert one.decide((AGENT,), CALL, tool).reason == ("identity" if more else "forbid")


def test_nobody_at_all_is_denied() -> None:
    assert matcher(Rule(id="all", forbid=False)).decide((), CALL, TOOL) == Decision(
        reason="identity", policy_digest=Bundle(rules=(Rule(id="all", forbid=False),)).digest
    )


def test_no_policies_deny() -> None:
    one = matcher()
    assert one.policies == 0
    assert one.decide((AGENT,), CALL, TOOL).reason == "no-permit"


class Sneaky(str):
    """Says that it is equal to everything."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(AGENT)


@pytest.mark.parametrize(
    "question",
    [((Sneaky("x"),), CALL, TOOL), ((1,), CALL, TOOL), ([AGENT], CALL, TOOL), (None, CALL, TOOL), (AGENT, CALL, TOOL),
     ((AGENT,), Sneaky("x"), TOOL), ((AGENT,), CALL, b"x"), ((AGENT,), None, TOOL), ((AGENT,), CALL, None)],
    ids=repr,
)  # fmt: skip
def test_anything_but_a_tuple_of_str_and_two_str_is_refused(question: tuple[object, object, object]) -> None:
    one = matcher(PERMIT)
    one.decide((AGENT,), CALL, TOOL)
    with pytest.raises(TypeError):
        one.decide(*question)  # type: ignore[arg-type]


def test_a_ring_in_a_bundle_ends() -> None:
    parents: dict[str, tuple[str, ...]] = {AGENT: ('G::"1"',), 'G::"1"': ('G::"2"',), 'G::"2"': ('G::"1"',)}
    one = Matcher(Bundle(rules=(Rule(id="p", forbid=False, principal=("in", 'G::"2"')),), parents=parents).encode())
    assert one.decide((AGENT,), CALL, TOOL).because == ("p",)


def test_a_policy_with_a_list_counts_once() -> None:
    rule = Rule(id="p", forbid=False, action=("in any", CALL, 'Action::"mcp"'))
    assert matcher(rule).decide((AGENT, AGENT), CALL, TOOL).because == ("p",)


def test_many_policies_that_apply_are_all_named_in_order() -> None:
    rules = [Rule(id=f"p{number}", forbid=False) for number in range(300)]
    assert matcher(*rules).decide((AGENT,), CALL, TOOL).because == tuple(sorted(rule.id for rule in rules))


def test_a_hierarchy_of_twenty_thousand_steps_is_walked() -> None:
    steps = 20_000
    parents: dict[str, tuple[str, ...]] = {f'G::"{n}"': (f'G::"{n + 1}"',) for n in range(steps)}
    parents[AGENT] = ('G::"0"',)
    one = Matcher(Bundle(rules=(Rule(id="p", forbid=False, principal=("in", f'G::"{steps}"')),), parents=parents).encode())
    assert one.decide((AGENT,), CALL, TOOL).because == ("p",)


GOOD = {"form": "wardline-bundle-1", "parents": {}, "rules": [["p", "permit", ["any"], ["any"], ["any"]]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "other"}, "the bundle has form `other`, this program reads `wardline-bundle-1`"),
        ({"rules": [["p", "permit", ["is not", "T"], ["any"], ["any"]]]}, "the bundle has a scope constraint `is not T`"),
        ({"rules": [["p", "permit", ["==", "T"], ["any"], ["any"]]]}, "the bundle names `T`, which is no entity uid"),
        ({"rules": [["p", "permit", ["any"], ["any"], ["in any", 'T::"x"']]]}, "the bundle has a scope constraint `in any"),
        ({"rules": [["p", "permit", [], ["any"], ["any"]]]}, "a scope constraint (), which is no tuple of texts"),
        ({"rules": [["p", "permit", ["any"], [], ["any"]]]}, "a scope constraint (), which is no tuple of texts"),
        ({"rules": [["p", "permit", ["==", 1], ["any"], ["any"]]]}, "the bundle has a scope constraint ('==', 1), which"),
        ({"parents": {'T::"y"': [1]}}, "the bundle names `1`, which is no entity uid"),
        ({"parents": {"x": ['T::"y"']}}, "the bundle names `x`, which is no entity uid"),
        ({"rules": [["p", "allow", ["any"], ["any"], ["any"]]]}, "bytes are no policy bundle"),
        ({"extra": 1}, "are not the canonical spelling of their policy bundle"),
    ],
)
def test_a_bundle_that_is_none_is_refused(change: dict[str, object], message: str) -> None:
    data = json.dumps(GOOD | change, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(OperatorFault) as fault:
        Matcher(data)
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"null", b'{"form":"wardline-bundle-1"}'])
def test_bytes_that_are_no_bundle_are_refused(data: bytes) -> None:
    with pytest.raises(OperatorFault):
        Matcher(data)


def test_a_second_thread_inside_is_refused_and_the_first_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = matcher(PERMIT)
    inside: list[str] = []

    def implied(uid: str) -> tuple[str, ...]:
        with pytest.raises(RuntimeError, match="one matcher is asked by one thread at a time"):
            one.decide((AGENT,), CALL, 'Tool::"other/t"')
        inside.append(uid)
        return implied_parents(uid)

    monkeypatch.setattr("ext.decide.implied_parents", implied)
    assert one.decide((AGENT,), CALL, TOOL).because == ("p",)
    assert inside
    monkeypatch.undo()
    assert one.decide((AGENT,), CALL, 'Tool::"other/t"').reason == "no-permit"


ENTITY, RULE = '"T::\\"a\\"":["T::\\"b\\"","T::\\"c\\""]', '["p","permit",["any"],["any"],["any"]]'


def spelled(entities: str = ENTITY, rules: str = RULE, end: str = "]}") -> bytes:
    return f'{{"form":"wardline-bundle-1","parents":{{{entities}}},"rules":[{rules}{end}'.encode()


@pytest.mark.parametrize(
    "data",
    [
        spelled(end="]} "),
        spelled(end="]}\n"),
        spelled(rules=RULE.replace(",", ", ", 1)),
        spelled(rules=RULE.replace('"p"', '"\\u0070"')),
        spelled(rules=f'["q","permit",["any"],["any"],["any"]],{RULE}'),
        spelled(entities=f'"T::\\"b\\"":[],{ENTITY}'),
        spelled(entities=f"{ENTITY},{ENTITY}"),
        spelled(entities='"T::\\"a\\"":["T::\\"c\\"","T::\\"b\\""]'),
        spelled(entities='"T::\\"a\\"":["T::\\"b\\"","T::\\"b\\""]'),
        spelled().replace(b'{"form"', b'{ "form"'),
        json.dumps({"form": "wardline-bundle-1", "rules": [], "parents": {}}, separators=(",", ":")).encode(),
    ],
)
def test_a_bundle_has_one_spelling(data: bytes) -> None:
    assert Matcher(spelled()).policies == Matcher(spelled(entities="")).policies == 1
    assert isinstance(parse_bundle(data), Bundle), "it can be read"
    with pytest.raises(OperatorFault, match="are not the canonical spelling of their policy bundle"):
        Matcher(data)


@pytest.mark.parametrize("data", [spelled(end=""), spelled(end="]"), spelled(rules=f"{RULE},"), spelled(entities=f"{ENTITY},")])
def test_a_bundle_that_was_cut_off_is_none(data: bytes) -> None:
    with pytest.raises(OperatorFault, match="bytes are no policy bundle"):
        Matcher(data)


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_what_is_read_piece_by_piece_is_what_is_read_at_once(seed: int) -> None:
    data = make_case(seed).compiled().bundle.encode()
    known = parse_bundle(data)
    found = list(pieces(data))
    assert tuple(one for one in found if isinstance(one, Rule)) == known.rules
    assert dict(one for one in found if not isinstance(one, Rule)) == known.parents
