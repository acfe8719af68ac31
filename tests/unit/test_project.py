"""The shape of the project, held by tests: who may import whom, what the tours and documents must name."""

import argparse
import ast
import importlib
import importlib.machinery
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import ext
from pipeline.cli.common import PACKAGES, refuse_strangers
from pipeline.cli.main import MODULES, build_parser
from schemas.config import SECTIONS
from schemas.errors import OperatorFault
from tests.support.data import NO_DATA, REPOSITORY

KERNELS = sorted(path.stem for path in (REPOSITORY / "ext").glob("*.pyx"))

MAY_IMPORT = {
    "schemas": {"schemas"},
    "ext": {"schemas", "ext"},
    "enforcers/core": {"schemas", "ext", "enforcers.core"},
    "enforcers/doors": {"schemas", "ext", "enforcers.core", "enforcers.doors"},
    "enforcers/host": {
        "schemas", "ext", "enforcers.core", "enforcers.host", "enforcers.doors.egress.orders", "enforcers.doors.names",
    },
    "pipeline/core": {"schemas", "ext", "pipeline.core"},
    "pipeline/policy": {"schemas", "ext", "pipeline.policy"},
    "pipeline/shells": {"schemas", "ext", "pipeline.core", "pipeline.policy", "pipeline.shells"},
    "pipeline/cli": {"schemas", "ext", "enforcers", "pipeline"},
}
PURE = ("enforcers/core", "pipeline/core", "pipeline/policy")
IO = {
    "aiohttp", "aiokafka", "asyncio", "chdb", "clickhouse_connect", "confluent_kafka", "datetime", "faust", "http", "kafka",
    "logging", "mode", "multiprocessing", "os", "random", "secrets", "select", "signal", "socket", "ssl", "subprocess",
    "threading", "time", "urllib", "uuid",
}  # fmt: skip
MODULES_IN_SCHEMAS_THAT_DO_IO = {"process", "keys", "links", "telemetry", "config"}


def sources(folder: str) -> Iterator[Path]:
    yield from sorted((REPOSITORY / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_follow_the_arrows(folder: str) -> None:
    allowed = MAY_IMPORT[folder]
    found = list(sources(folder))
    assert found, f"{folder} has no module"
    for path in found:
        for name in imported(path):
            if name.split(".")[0] not in PACKAGES or name in PACKAGES:
                continue  # a bare package brings its docstring and nothing of its modules
            fits = any(name == one or name.startswith(f"{one}.") for one in allowed)
            package = any(one.startswith(f"{name}.") for one in allowed)
            assert fits or package, f"{path.relative_to(REPOSITORY)} imports {name}, may import {sorted(allowed)}"


@pytest.mark.parametrize("folder", PURE)
def test_cores_do_no_io(folder: str) -> None:
    for path in sources(folder):
        if path.name == "load.py" and folder == "pipeline/policy":
            continue  # reads the policy files, and nothing else does
        found = {name.split(".")[0] for name in imported(path)} & IO
        assert not found, f"{path.relative_to(REPOSITORY)} imports {sorted(found)}"


def test_the_nouns_do_io_only_where_they_say_so() -> None:
    for path in sources("schemas"):
        found = {name.split(".")[0] for name in imported(path)} & (IO - {"datetime"})
        assert not found or path.stem in MODULES_IN_SCHEMAS_THAT_DO_IO, f"{path.name} imports {sorted(found)}"


def packages() -> list[str]:
    found = []
    for top in PACKAGES:
        for path in sorted((REPOSITORY / top).rglob("__init__.py")):
            found.append(".".join(path.relative_to(REPOSITORY).parent.parts))
    return found


@pytest.mark.parametrize("package", packages())
def test_every_tour_names_every_module(package: str) -> None:
    folder = REPOSITORY / package.replace(".", "/")
    tour = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = {m.name for m in pkgutil.iter_modules([str(folder)])} | {p.stem for p in folder.glob("*.pyx")}
    modules = {name for name in modules if not name.startswith("_")}
    named = set(re.findall(r"`(?:[\w.]+\.)?(\w+)`", tour))
    assert not modules - named, f"{package} does not name {sorted(modules - named)}"


def test_every_folder_with_modules_is_a_package() -> None:
    for top in PACKAGES:
        for folder in {path.parent for path in (REPOSITORY / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(REPOSITORY)} has no __init__.py"


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_compiled(kernel: str) -> None:
    module = importlib.import_module(f"ext.{kernel}")
    assert str(module.__file__).endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


def test_every_kernel_is_built_by_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    built = {m["name"] for m in project["tool"]["setuptools"]["ext-modules"]}
    assert built == {f"{ext.__name__}.{kernel}" for kernel in KERNELS}


def test_the_lock_file_has_every_dependency_with_hashes_and_no_address() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    text = (REPOSITORY / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", text, re.MULTILINE))
    needs = [project["project"]["dependencies"], project["dependency-groups"]["dev"], project["build-system"]["requires"]]
    for wanted in (one for group in needs for one in group):
        name = re.match(r"[A-Za-z0-9-]+", wanted)
        assert name is not None
        assert name.group().lower() in locked, f"{wanted} is not in requirements.lock"
    assert "://" not in text
    assert text.count("==") <= text.count("--hash=")


def test_the_configuration_page_names_every_key_with_its_default() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    for section, kind in SECTIONS.items():
        part = page.partition(f"## [{section}]")[2].partition("\n## ")[0]
        assert part, f"docs/configuration.md has no section [{section}]"
        rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", part, re.MULTILINE))
        defaults = {f.name: json.dumps(f.default) for f in fields(kind)}
        assert rows == defaults
        for f in fields(kind):
            if "low" in f.metadata:
                bounds = f"{f.metadata['low']} to {f.metadata['high']}"
                assert re.search(rf"^\| `{f.name}` \| .*\b{bounds}\b", part, re.MULTILINE), f"{section}.{f.name}: {bounds}"
            for choice in f.metadata.get("choices", ()):
                assert re.search(rf"^\| `{f.name}` \| .*`{choice}`", part, re.MULTILINE), f"{section}.{f.name}: {choice}"


def tracked() -> list[Path]:
    """The files that belong to the project: those that git knows, or all in a copy without it."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [path for name in done.stdout.decode().split("\0") if name and (path := REPOSITORY / name).is_file()]
    tops = (*PACKAGES, "tests", "benchmarks", "docs", "deploy")
    return [p for top in tops for p in (REPOSITORY / top).rglob("*") if p.suffix in (".py", ".md", ".pyx", ".sql", ".toml")]


def test_no_file_names_a_machine() -> None:
    """Paths of one machine, and hosts of package indexes, have no place in the project."""
    machine = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp/wl)\b/?(?!\.local/state)")
    index = re.compile(r"https?://[\w.-]*(?:pypi|pythonhosted|artifactory|nexus|devpi|mirror)[\w.-]*", re.IGNORECASE)
    for path in tracked():
        if path == Path(__file__) or path.name == "requirements.lock":
            continue
        text = path.read_text(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            found = machine.search(line) or index.search(line)
            assert not found, f"{path.relative_to(REPOSITORY)}:{number}: {found and found.group()}"


def commands(text: str) -> Iterator[list[str]]:
    """Every `wardline ...` line in the shell blocks of a page."""
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and Path(words[0]).name == "wardline":
                yield words[1:]


PAGES = sorted(p.relative_to(REPOSITORY).as_posix() for p in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_documents_is_one(page: str) -> None:
    parser = build_parser()
    for words in commands((REPOSITORY / page).read_text()):
        if {"-h", "--help"} & set(words):
            continue
        parser.parse_args(words)


def test_the_readme_shows_commands_to_check() -> None:
    found = [words[0] for words in commands((REPOSITORY / "README.md").read_text())]
    assert {"replay", "sql", "status"} <= set(found)


def test_the_readme_reaches_its_first_command_on_the_first_screen() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert next(n for n, line in enumerate(lines) if "make up" in line) <= 24


def test_every_page_that_the_documents_link_to_exists() -> None:
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(REPOSITORY)} links to {target}"


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every option and argument of every command, with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                for _, option in options(inner):
                    yield name, option
        elif not isinstance(action, argparse._HelpAction):
            yield "", action


def test_every_option_of_the_command_line_is_read() -> None:
    text = "\n".join(path.read_text() for path in sources("pipeline/cli"))
    for command, option in options(build_parser()):
        read = re.search(rf"\.{option.dest}\b|getattr\(args, \"{option.dest}\"", text)
        assert read, f"{command}: nothing reads {option.option_strings or option.dest}"


def test_every_option_has_a_help_text() -> None:
    for command, option in options(build_parser()):
        assert option.help, f"{command} {option.option_strings}"


def test_every_key_of_the_configuration_is_read() -> None:
    text = "\n".join(path.read_text() for top in PACKAGES for path in sources(top) if path.name != "config.py")
    for section, kind in SECTIONS.items():
        for f in fields(kind):
            assert re.search(rf"\.{f.name}\b", text), f"nothing reads {section}.{f.name}"


def test_a_stranger_that_claims_one_of_our_packages_is_named() -> None:
    refuse_strangers({name: ["wardline"] for name in PACKAGES})
    with pytest.raises(OperatorFault, match="package `schemas` is also claimed by distribution `other`"):
        refuse_strangers({"schemas": ["wardline", "other"]})


def test_this_environment_has_no_stranger() -> None:
    refuse_strangers()


def test_no_module_is_longer_than_600_lines() -> None:
    for top in (*PACKAGES, "tests", "benchmarks"):
        for path in sorted((REPOSITORY / top).rglob("*.py*")):
            if path.suffix in (".py", ".pyx", ".pyi"):
                lines = len(path.read_text().splitlines())
                assert lines <= 600, f"{path.relative_to(REPOSITORY)} has {lines} lines"


def test_the_command_line_starts_without_the_engines() -> None:
    """`wardline --help` and `wardline status` must not wait for Faust, chDB or a Kafka client to be imported."""
    code = (
        "import sys; from pipeline.cli.main import build_parser; build_parser(); "
        "print(sorted({'faust', 'chdb', 'aiokafka', 'confluent_kafka'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_waits_for_what_only_others_need() -> None:
    """Each is made alone from its module; PyArrow does not look for pandas, which the store's engine brings along."""
    whole = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert list(whole.choices) == [name for names in MODULES.values() for name in names]
    for name in whole.choices:
        alone = next(a for a in build_parser(name)._actions if isinstance(a, argparse._SubParsersAction))
        assert alone.choices[name].format_help() == whole.choices[name].format_help()
    code = (
        "import sys; from pipeline.cli.main import build_parser; import pyarrow; build_parser('status'); pyarrow.array([0]); "
        "print(sorted({'pandas', 'clickhouse_connect', 'pipeline.cli.calls'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("reason", "code"), [(NO_DATA, 0), ("it is too hard", 1)])
def test_a_skip_that_nobody_allowed_fails_the_run(tmp_path: Path, reason: str, code: int) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\ndef test_it(): pass\ndef test_other(): pytest.skip({reason!r})\n")
    settings = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(tmp_path / "none.ini")]
    command = [sys.executable, "-m", "pytest", *settings]
    (tmp_path / "none.ini").write_text("[pytest]\n")
    done = subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("SKIPPED WITHOUT LEAVE" in done.stdout) == bool(code)
