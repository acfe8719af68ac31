"""Settings for every test: hypothesis repeats itself, and a skip that hides a broken set-up fails the run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.contained import NO_NAMESPACES, NO_NFT, NO_PROGRAM
from tests.support.controlling import NOT_ROOT
from tests.support.data import NO_DATA
from tests.support.fulldisk import NO_MOUNT
from tests.support.home import Wardline
from tests.support.kafka import NO_JAVA, Kafka, have_java
from tests.support.store import shared_store, store

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("searching", deadline=None)
settings.load_profile("searching" if os.environ.get("WARDLINE_SEARCH") else "repeatable")

__all__ = ["kafka", "shared_store", "store", "wardline"]

MAY_SKIP = (NO_DATA, NO_MOUNT, NO_NAMESPACES, NO_NFT, NO_PROGRAM, NOT_ROOT)
"""Why a test may be skipped on a machine that has Java and Maven. On one without, NO_JAVA is one more."""

_skipped: list[str] = []


@pytest.fixture
def wardline(tmp_path: Path) -> Iterator[Wardline]:
    """A home with nothing running; what a test starts in it is gone afterwards."""
    with Wardline(tmp_path / "home") as home:
        yield home


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A real Kafka for the tests of one module."""
    folder = tmp_path_factory.mktemp("kafka")
    with Kafka(folder) as node:
        yield node
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the `kafka` fixture needs Kafka, without saying so twice."""
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped and why."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _remember(report.nodeid, reason)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that skips itself while it is collected counts too."""
    if report.skipped:
        _remember(report.nodeid, report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))


def _remember(where: str, reason: str) -> None:
    allowed = MAY_SKIP if have_java() else (*MAY_SKIP, NO_JAVA)
    if not any(reason.removeprefix("Skipped: ").startswith(why) for why in allowed):
        _skipped.append(f"{where}: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for a skip that nobody allowed."""
    if _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips failed the run."""
    for line in _skipped:
        terminalreporter.write_line(f"SKIPPED WITHOUT LEAVE {line}", red=True)
