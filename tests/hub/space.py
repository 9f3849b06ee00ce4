"""A run with an ensemble, and the Space that it was pushed to: fixtures, see conftest.py."""

import subprocess
import sys

import pytest

from tests.cli.test_tools import evolve
from tests.tiny import save_tiny_checkpoint

from .clients import ROOT
from .server import HubServer

SMD_HF = "import sys; from smd_hf.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def space_run(tmp_path_factory):
    """The folder of a run with an ensemble, and its parent beside it."""
    root = tmp_path_factory.mktemp("space")
    save_tiny_checkpoint("resnet", root / "parent")
    evolve(root, "run", ensemble_size=2, ensemble_selection="top_k")
    return root / "run"


@pytest.fixture(scope="module")
def space(space_run, tmp_path_factory):
    """The files of the Space as they are on the Hub after a push."""
    folder = tmp_path_factory.mktemp("clone")
    with HubServer() as hub:
        environment = hub.environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        argv = ["push", str(space_run), "--space", "tester/page", "--parent", str(space_run.parent / "parent")]
        command = [sys.executable, "-c", SMD_HF, *argv]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.url}/spaces/tester/page"
        for name, content in hub.files("tester/page", repo_type="space").items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        assert len(hub.commits("tester/page", repo_type="space")) == 2
    return folder
