"""The policies that a call was decided by, as somebody wrote them: found by their digest, or said to be gone.

A record names policies by their ids and the whole set by its digest. Files that compile to that digest decide the same, so
their text is what decided, annotations and comments apart: those are not part of what is compiled. Where the files have
changed since, a compiled set that a host of this home still keeps says what each policy's scope was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ext.decide import Matcher
from pipeline.policy.check import NamedClause, check
from pipeline.policy.compile import compile_set
from pipeline.policy.lex import Source, tokens
from pipeline.policy.load import read_folder
from pipeline.policy.parse import parse
from schemas.bundle import Bundle, Constraint, Rule, parse_bundle
from schemas.errors import OperatorFault
from schemas.home import Home

TEXT_CHARS_MAX: Final = 2_000
"""Characters of one policy that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """One policy: where it stands, what it says, and its annotations. `place` is empty where only its scope is known."""

    id: str
    effect: str
    text: str
    place: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What is known of the set with a digest."""

    source: str
    """`files`, `compiled`, or empty where nobody here has it."""
    note: str
    """What a reader must know of the source, in a sentence; empty where nothing."""
    bundle: Bundle | None = None
    clauses: Mapping[str, NamedClause] = field(default_factory=dict)

    def text(self, name: str) -> PolicyText | None:
        """One policy; None where nobody here has it."""
        if name in self.clauses:
            return _written(self.clauses[name])
        for rule in self.bundle.rules if self.bundle is not None else ():
            if rule.id == name:
                return PolicyText(id=rule.id, effect=_effect(rule), text=scope_text(rule))
        return None

    def matcher(self) -> Matcher | None:
        """What decides by this set, where it is here."""
        return Matcher(self.bundle.encode()) if self.bundle is not None else None


def policies_at(home: Home, digest: str) -> Policies:
    """The policies with a digest, from the files of the home or from what its hosts keep."""
    problem = now = ""
    try:
        files, entities = read_folder(home.policies)
        bundle = compile_set(files, entities).bundle
        now = bundle.digest
        if now == digest:
            clauses = {one.id: one for one in check(parse(source) for source in files)}
            return Policies(source="files", note="", bundle=bundle, clauses=clauses)
    except OperatorFault as fault:
        problem = str(fault)
    if problem:
        since = f"the files do not compile now ({problem})"
    elif home.policies.is_dir():
        since = f"the files have changed since: their digest is now {now[:12]}"
    else:
        since = "this home has no policy files"
    held = _kept(home, digest)
    if held is not None:
        return Policies(source="compiled", note=f"{since}; shown is the scope that was compiled", bundle=held)
    return Policies(source="", note=f"{since}, and no host of this home keeps the set with digest {digest[:12]}")


def _kept(home: Home, digest: str) -> Bundle | None:
    if len(digest) != 64 or not digest.isalnum():
        return None  # what a record says is not put into a path
    for path in sorted(home.hosts.glob(f"*/bundle/{digest}.json")):
        try:
            found = parse_bundle(path.read_bytes())
        except (OSError, OperatorFault):
            continue  # its host makes it whole again, or removes it
        if found.digest == digest:
            return found
    return None


def _written(one: NamedClause) -> PolicyText:
    clause = one.clause
    begin = min([clause.at, *(annotation.at for annotation in clause.annotations.values())])
    text = clause.source.text[begin : _end(clause.source.text, clause.at)]
    if len(text) > TEXT_CHARS_MAX:
        text = f"{text[:TEXT_CHARS_MAX]} ..."
    return PolicyText(
        id=one.id, effect="forbid" if clause.forbid else "permit", text=text, place=clause.source.place(clause.at),
        annotations={annotation.name: annotation.value for annotation in clause.annotations.values()},
    )  # fmt: skip


def _end(text: str, at: int) -> int:
    """Where the policy whose effect stands at `at` ends: behind its `;`, which no string of its scope is."""
    for token in tokens(Source("", text[at:])):
        if token.kind == "end" or (token.kind == "sign" and token.text == ";"):
            return at + token.at + len(token.text)
    return len(text)


def _effect(rule: Rule) -> str:
    return "forbid" if rule.forbid else "permit"


def scope_text(rule: Rule) -> str:
    """A compiled policy in Cedar."""
    scope = ", ".join(
        _test(name, constraint)
        for name, constraint in (("principal", rule.principal), ("action", rule.action), ("resource", rule.resource))
    )
    return f"{_effect(rule)} ({scope});"


def _test(variable: str, constraint: Constraint) -> str:
    match constraint:
        case ("any",):
            return variable
        case ("is in", kind, uid):
            return f"{variable} is {kind} in {uid}"
        case ("in any", *uids):
            return f"{variable} in [{', '.join(uids)}]"
        case (test, uid):
            return f"{variable} {test} {uid}"
    raise AssertionError(f"no constraint: {constraint}")
