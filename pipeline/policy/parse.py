"""Cedar policies up to the end of their scope: text to clauses that remember where they stand.

    Policy     = { `@` name [ `(` string `)` ] } ( `permit` | `forbid` ) `(` Scope `)` `;`
    Scope      = principal [ Test ] `,` action [ ActionTest ] `,` resource [ Test ] [ `,` ]
    Test       = `==` Entity | `in` Entity | `is` Type [ `in` Entity ]
    ActionTest = `==` Entity | `in` ( Entity | `[` [ Entity { `,` Entity } [ `,` ] ] `]` )
    Entity     = Type `::` string | `(` Entity `)`        Type = name { `::` name }

What Cedar has beyond that is refused by its name: conditions and templates. What is accepted here Cedar accepts too, and means
the same by it.
"""

from dataclasses import dataclass, field
from typing import Final

from pipeline.policy.lex import Source, Token, tokens
from schemas.bundle import Constraint
from schemas.errors import OperatorFault
from schemas.limits import RESOURCE_BYTES_MAX
from schemas.vocabulary import RESERVED_WORDS, EscapeFault, entity_uid, shown, unquote

_OTHER_TESTS: Final = frozenset({"!=", "<", ">", "<=", ">=", "=", "&&", "||", "+", "-", "*", "like", "has"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """`@name("value")`, and where it stands. Without a value the value is empty."""

    name: str
    value: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One policy as it is written. `at` is where its effect stands."""

    source: Source
    at: int
    forbid: bool
    principal: Constraint
    action: Constraint
    resource: Constraint
    annotations: dict[str, Annotation] = field(default_factory=dict)


def parse(source: Source) -> list[Clause]:
    """Every policy of a file, in its order. Raises OperatorFault, `FILE:LINE:COLUMN: ...`, at the first that is wrong."""
    reader = _Reader(source)
    found = []
    while reader.now.kind != "end":
        found.append(reader.clause())
    return found


class _Reader:
    """One token ahead, never back."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tokens = tokens(source)
        self.now = next(self._tokens)

    def _take(self) -> Token:
        taken = self.now
        if taken.kind != "end":
            self.now = next(self._tokens)
        return taken

    def _at(self, text: str) -> bool:
        """Whether the next token is this sign or word."""
        return self.now.text == text and self.now.kind in ("sign", "name")

    def _skip(self, text: str) -> bool:
        """Take the next token if it is this sign or word."""
        return self._at(text) and bool(self._take())

    def _fault(self, message: str, at: Token | None = None) -> OperatorFault:
        return self._source.fault((at or self.now).at, message)

    def _expect(self, text: str, where: str) -> Token:
        if not self._at(text):
            raise self._fault(f"expected `{text}` {where}, found {self.now}")
        return self._take()

    def clause(self) -> Clause:
        annotations: dict[str, Annotation] = {}
        while self._at("@"):
            one = self._annotation()
            if one.name in annotations:
                raise self._source.fault(one.at, f"annotation `@{one.name}` stands twice on one policy")
            annotations[one.name] = one
        effect = self.now
        if effect.kind != "name" or effect.text not in ("permit", "forbid"):
            raise self._fault(f"expected `permit` or `forbid`, found {effect}")
        self._take()
        self._expect("(", f"after `{effect.text}`")
        principal = self._variable("principal")
        self._comma("action")
        action = self._variable("action")
        self._comma("resource")
        resource = self._variable("resource")
        self._skip(",")
        self._expect(")", "at the end of the scope")
        if self.now.kind == "name" and self.now.text in ("when", "unless"):
            raise self._fault(f"conditions (`{self.now.text}`) are not supported yet")
        self._expect(";", "after the policy")
        return Clause(source=self._source, at=effect.at, forbid=effect.text == "forbid", principal=principal, action=action,
                      resource=resource, annotations=annotations)  # fmt: skip

    def _annotation(self) -> Annotation:
        sign = self._take()
        name = self.now
        if name.kind != "name":
            raise self._fault(f"expected the name of an annotation after `@`, found {name}")
        self._take()
        value = ""
        if self._skip("("):
            if self.now.kind != "string":
                raise self._fault(f"expected a string as the value of `@{name.text}`, found {self.now}")
            value = self._string()
            self._expect(")", f"after the value of `@{name.text}`")
        return Annotation(name=name.text, value=value, at=sign.at)

    def _string(self) -> str:
        token = self._take()
        body = token.text[1:-1]
        if (bare := body.find("\r")) >= 0:
            raise self._source.fault(token.at + 1 + bare, "a string has a bare carriage return: write `\\r`")
        try:
            return unquote(body)
        except EscapeFault as fault:
            raise self._source.fault(token.at + 1 + fault.at, str(fault)) from fault

    def _comma(self, following: str) -> None:
        if self._at(")"):
            raise self._fault(f"the scope has no `{following}`: it is `(principal, action, resource)`")
        self._expect(",", f"before `{following}`")

    def _variable(self, name: str) -> Constraint:
        if self._at(")"):
            raise self._fault(f"the scope has no `{name}`: it is `(principal, action, resource)`")
        if not self._skip(name):
            raise self._fault(f"expected `{name}`, found {self.now}: a scope is `(principal, action, resource)`")
        if self._at("=="):
            self._take()
            return ("==", self._entity(name))
        if self._at("in"):
            self._take()
            return self._within(name)
        if self._at("is"):
            return self._is_type(name)
        if self._at(":"):
            raise self._fault(f"a scope has no `:`: write `{name} is Type`")
        if self.now.text in _OTHER_TESTS:
            raise self._fault(f"`{self.now.text}` is no test that a scope can have: write `==`, `in`, `is` or `is ... in`")
        return ("any",)

    def _is_type(self, name: str) -> Constraint:
        if name == "action":
            raise self._fault("`is` is no test for the action: write `==` or `in`")
        self._take()
        begins = self.now
        kind, has_id = self._path("expected an entity type after `is`")
        if has_id:
            raise self._fault(f"`is` takes a type, and this is an entity: write `{name} ==`", begins)
        if self._at("=="):
            raise self._fault("`is` and `==` do not go together: the entity says its type")
        return ("is in", kind, self._entity(name)) if self._skip("in") else ("is", kind)

    def _within(self, name: str) -> Constraint:
        if not self._at("["):
            uid = self._entity(name)
            if self._at("is"):
                raise self._fault("`is` stands before `in`: write `is Type in Entity`")
            return ("in", uid)
        if name != "action":
            raise self._fault(f"a list is for actions only: write one policy for each entity of `{name}`")
        self._take()
        listed = set()
        while not self._at("]"):
            listed.add(self._entity(name))
            if not self._skip(","):
                break
        self._expect("]", "at the end of the list")
        return ("in", *listed) if len(listed) == 1 else ("in any", *sorted(listed))

    def _entity(self, name: str) -> str:
        begins, opened = self.now, 0
        while self._skip("("):
            opened += 1
        if self.now.kind == "string":
            raise self._fault(f"{self.now} is a string: an entity is written `Type::\"id\"`")
        kind, has_id = self._path(f"expected an entity to compare `{name}` with")
        if not has_id:
            raise self._fault(f"`{shown(kind)}` is a type: an entity is written `Type::\"id\"`", begins)
        if name == "action" and kind.rpartition("::")[2] != "Action":
            raise self._fault(f"an action has the type `Action`, not `{shown(kind)}`", begins)
        uid = entity_uid(kind, self._string())
        if (size := len(uid.encode())) > RESOURCE_BYTES_MAX:
            raise self._fault(f"entity `{shown(uid)}` has {size} bytes, limit is {RESOURCE_BYTES_MAX}", begins)
        for _ in range(opened):
            self._expect(")", "after the entity")
        return uid

    def _path(self, what: str) -> tuple[str, bool]:
        """A type, and whether `::` and a string follow, which make an entity of it; the `::` is taken then."""
        if self.now.kind == "slot":
            raise self._fault(f"templates (`{shown(self.now.text)}`) are not supported yet")
        if self.now.kind != "name":
            raise self._fault(f"{what}, found {self.now}")
        parts = [self._identifier()]
        while self._skip("::"):
            if self.now.kind == "string":
                return "::".join(parts), True
            if self.now.kind != "name":
                raise self._fault(f"expected a name or a string after `::`, found {self.now}")
            parts.append(self._identifier())
        return "::".join(parts), False

    def _identifier(self) -> str:
        if self.now.text in RESERVED_WORDS:
            raise self._fault(f"`{self.now.text}` is a reserved word and names no type")
        return self._take().text
