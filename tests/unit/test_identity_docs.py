"""The page that says who is refused, and why, names each code that the doors have, with its status."""

import ast
import re

from enforcers.core.caller import BUSY, UNREADY, NoIdentity
from tests.support.data import REPOSITORY

PLACES = ("enforcers/core", "enforcers/doors/egress")


def codes() -> set[str]:
    """The first argument of every NoIdentity that is made anywhere."""
    found = set()
    for folder in PLACES:
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NoIdentity":
                    match node.args[0]:
                        case ast.Constant(value=str(code)):
                            found.add(code)
                        case ast.Name(id=name):
                            found.add({"BUSY": BUSY, "UNREADY": UNREADY}[name])
    return found


def test_the_page_has_every_code_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "identity.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (4\d\d|5\d\d) \|", page, re.MULTILINE))
    assert {code: str(NoIdentity(code, "").status) for code in codes()} == rows
    assert len(rows) > 15
