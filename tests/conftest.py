"""
The same surroundings for every test: one thread, no network, no bars, and caches that leave the user's own alone.

All of it is environment, set before any library is imported, so that processes which tests start inherit it.
"""

import gc
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


DRAWING = {f"test_{name}.py" for name in ("plots", "predictions", "demo", "space", "trackers", "notebook", "pareto")}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    draw(item.path.name in DRAWING or "examples" in item.path.parts)


def pytest_collection_finish() -> None:
    """What the libraries have made by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def two_threads():
    """PyTorch has two threads, where every other test has one."""
    import torch

    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def warned(caplog):
    """The messages logged so far that hold a text."""
    return lambda text: [record.message for record in caplog.records if text in record.message]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a tiny ResNet, for the tests of one module. A module that wants another parent has a fixture of this name."""
    from tests.tiny import save_tiny_checkpoint  # after the environment is set

    folder = tmp_path_factory.mktemp("parent")
    save_tiny_checkpoint("resnet", folder)
    return folder
