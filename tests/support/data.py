"""The data that is shared beside the repository and not part of it."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NO_DATA = "the shared data folder is not here"


def data_folder() -> Path:
    """WARDLINE_DATA, or `shared/data` beside the repository; skips the test when neither is there."""
    named = os.environ.get("WARDLINE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{NO_DATA}: {folder}")
    return folder
