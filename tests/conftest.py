"""
The same surroundings for every test: one thread, no network, no bars, and caches that leave the user's own alone.

All of it is environment, set before any library is imported, so that processes which tests start inherit it.
"""

import os
import shutil
import tempfile

import pytest
from matplotlib.figure import Figure

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


def pytest_unconfigure() -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)


# Drawing takes most of the time of a tiny run, and hundreds of tests make one. Only tests of figures draw them.
DRAWING = {"test_plots.py", "test_demo.py", "test_space.py", "test_trackers.py", "test_notebook.py", "test_pareto.py"}
drawn_figure, is_drawing = Figure.savefig, False


def savefig(self, path, *args, **kwargs):
    if not is_drawing:
        self.clear()
        self.set_layout_engine("none")
        self.set_size_inches(0.1, 0.1)
    return drawn_figure(self, path, *args, **kwargs)


Figure.savefig = savefig


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    global is_drawing
    is_drawing = item.path.name in DRAWING or "examples" in item.path.parts


@pytest.fixture
def warned(caplog):
    """The messages logged so far that hold a text."""
    return lambda text: [record.message for record in caplog.records if text in record.message]
