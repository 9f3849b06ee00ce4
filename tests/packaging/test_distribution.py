"""The wheel: what is in it, and the demo from it in a fresh environment."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import smd_hf

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=580, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_the_version_is_said_once_in_each_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == smd_hf.__version__
    assert f"\nversion: {smd_hf.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {smd_hf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_of_messages_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"onnx", "openvino", "space", "pareto", "tensorboard", "trackio", "mlflow", "wandb"} <= extras.keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_package_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "smd_hf"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("smd_hf/")} == expected


@pytest.mark.slow
def test_the_wheel_in_a_fresh_environment_runs_the_demo(wheel, tmp_path):
    uv = Path(sys.executable).with_name("uv")
    assert uv.is_file(), "uv makes the environment: make test installs it"
    run(uv, "venv", "--python", sys.executable, tmp_path / "venv")
    run(uv, "pip", "install", "--python", tmp_path / "venv" / "bin" / "python", wheel)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [tmp_path / "venv" / "bin" / "smd-hf", "demo", "--population_size", "8", "--num_generations", "2"]
    printed = run(*command, cwd=tmp_path, env=environment)
    assert "accuracy (%)" in printed and (tmp_path / "demo_output" / "evolved" / "model.safetensors").is_file()
