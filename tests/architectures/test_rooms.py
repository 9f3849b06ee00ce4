"""The contract of the rooms: each imports only from those below it, and a new room has to be put in its place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(root: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAYON_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture
def house(tmp_path):
    """A copy of the package and its contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "smd_hf", tmp_path / "smd_hf", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_no_room_imports_from_above(house):
    result = lint(house)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("where", ["", "if TYPE_CHECKING:\n    "])
def test_an_import_from_above_is_found(where, house):
    with open(house / "smd_hf" / "scoring" / "scores.py", "a", encoding="utf-8") as file:
        file.write(f"\nfrom typing import TYPE_CHECKING\n\n{where}from ..run.ledger import Ledger  # noqa\n")
    result = lint(house)
    assert result.returncode == 1 and "smd_hf.scoring.scores -> smd_hf.run.ledger" in result.stdout


def test_a_room_without_a_place_is_found(house):
    (house / "smd_hf" / "attic").mkdir()
    (house / "smd_hf" / "attic" / "__init__.py").touch()
    result = lint(house)
    assert result.returncode != 0 and "attic" in result.stdout + result.stderr
