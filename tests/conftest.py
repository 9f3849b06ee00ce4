"""
The same surroundings for every test: one thread, no network, no bars, and caches that leave the user's own alone.

All of it is environment, set before any library is imported, so that processes which tests start inherit it.
"""

import os
import shutil
import sys
import tempfile

import pytest

from tests.figures import draw

HF_HOME = tempfile.mkdtemp(prefix="smd-hf-tests-")

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HOME=HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
os.environ.pop("HF_TOKEN", None)
# OpenVINO's statistics of use go out through a fork of the test process, from one of its threads.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def pytest_unconfigure() -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)


DRAWING = {"test_plots.py", "test_demo.py", "test_space.py", "test_trackers.py", "test_notebook.py", "test_pareto.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    draw(item.path.name in DRAWING or "examples" in item.path.parts)


@pytest.fixture
def warned(caplog):
    """The messages logged so far that hold a text."""
    return lambda text: [record.message for record in caplog.records if text in record.message]
