"""The kernels are in the coverage report: a kernel that vanishes from it would leave a total that means nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import REPOSITORY

PARTS = (
    "schemas", "ext", "enforcers", "pipeline", "benchmarks", "tests", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in",
)  # fmt: skip
SHARE_MIN = 0.5
"""Of a kernel's lines that its own laws reach; a report without the kernel, or with no line of it, is what this is against."""

LAWS = ("test_board.py", "test_spool.py", "test_columns.py", "test_decide_kernel.py", "test_heads_kernel.py")
BUILT = shutil.ignore_patterns("*.so", "*.c", "*.cpp", "__pycache__", "*.egg-info")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_every_kernel_is_in_the_coverage_report(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, copy / part, ignore=BUILT)
        else:
            shutil.copy(REPOSITORY / part, copy / part)
    environment = os.environ | {"WARDLINE_TRACE": "1", "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}

    def run(*words: str) -> None:
        done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    run("-c", "from setuptools import setup; setup()", "build_ext", "--inplace", "--parallel", "2")
    laws = [f"tests/laws/{name}" for name in LAWS]
    run("-m", "coverage", "run", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not hundred_thousand", *laws)
    run("-m", "coverage", "json", "-q", "-o", "coverage.json")
    files = json.loads((copy / "coverage.json").read_text())["files"]
    for kernel in sorted((copy / "ext").glob("*.pyx")):
        name = f"ext/{kernel.name}"
        assert name in files, f"{name} is not in the report: {sorted(files)}"
        summary = files[name]["summary"]
        assert summary["covered_lines"] > SHARE_MIN * summary["num_statements"] > 0, (name, summary)
