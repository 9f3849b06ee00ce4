"""Each tracker logs a run: generations, the fitness of children, cost, and the report's figures."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from smd_hf.reports.saved_run import read_run

ROOT = Path(__file__).parents[2]

EVOLVE = """
    import sys
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from tests.cli.test_tools import evolve
    from tests.tiny import save_tiny_checkpoint
    root = Path(sys.argv[1])
    save_tiny_checkpoint("resnet", root / "parent")
    trainer = evolve(root, "run", report_to=sys.argv[2].split(), run_name="a-run", project="evolution")
    assert trainer.report is not None
"""


def evolve_with(trackers, root, **environment):
    """A run in a process of its own: trackers keep global state. Returns the run, and the children's fitness by generation."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EVOLVE), str(root), trackers],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "did not take" not in done.stderr, done.stderr[-3000:]
    run = read_run(root / "run")
    return run, [np.array([child["fitness"] for child in record["children"]]) for record in run.generations]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of a run that TensorBoard and MLflow log, the run, and its children's fitness."""
    root = tmp_path_factory.mktemp("tracked")
    environment = {
        "TENSORBOARD_LOGGING_DIR": str(root / "log"),
        "MLFLOW_TRACKING_URI": f"file:{root / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    return root, *evolve_with("tensorboard mlflow", root, **environment)


def test_tensorboard(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, run, children = tracked
    events = EventAccumulator(str(root / "log"), size_guidance={"histograms": 0, "images": 0})
    events.Reload()
    histograms = events.Histograms("children/fitness")
    assert [event.step for event in histograms] == [1, 2]
    for event, fitness in zip(histograms, children):
        found = event.histogram_value
        assert (found.num, found.min, found.max) == (4, pytest.approx(fitness.min()), pytest.approx(fitness.max()))
    assert [event.step for event in events.Scalars("cost/images_forwarded")] == [1, 2]
    assert {"report/gain", "report/fitness", "report/reliability"} <= set(events.Tags()["images"])
    [accuracy] = events.Scalars("report/evolved_accuracy")
    assert accuracy.value == pytest.approx(run.report["evolved"]["accuracy"])
    assert any(tag.endswith("parent_nll") for tag in events.Tags()["scalars"])


def test_mlflow(tracked):
    root, run, children = tracked
    [folder] = [path.parent for path in (root / "mlruns").glob("*/*/metrics")]
    [value] = (folder / "metrics" / "report" / "evolved_accuracy").read_text().splitlines()
    assert float(value.split()[1]) == pytest.approx(run.report["evolved"]["accuracy"])
    assert len((folder / "metrics" / "cost" / "images_forwarded").read_text().splitlines()) == 2
    table = json.loads((folder / "artifacts" / "children.json").read_text())
    rows = [dict(zip(table["columns"], row)) for row in table["data"]]
    assert [row["fitness"] for row in rows] == pytest.approx(np.concatenate(children).tolist())
    assert [row["generation"] for row in rows] == [1] * 4 + [2] * 4
    figures = {path.name for path in (folder / "artifacts" / "report").iterdir()}
    assert {"gain.png", "fitness.png", "reliability.png"} <= figures


@pytest.mark.integration
def test_trackio(tmp_path):
    import sqlite3

    run, _ = evolve_with("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    [path] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    histograms = [row["children/fitness"] for row in rows if "children/fitness" in row]
    assert [sum(found["values"]) for found in histograms] == [4, 4]
    [scores] = [row for row in rows if "report/evolved_accuracy" in row]
    assert scores["report/evolved_accuracy"] == pytest.approx(run.report["evolved"]["accuracy"])
    assert {"report/gain", "report/fitness", "report/reliability"} <= scores.keys()


def test_a_tracker_that_fails_does_not_end_a_run(caplog):
    from smd_hf.reports import trackers

    class Broken(trackers._Tracker):
        def report(self, *values):
            raise ConnectionError("no server")

    callback = trackers.TrackerCallback(list, lambda: None)
    callback.trackers = [Broken(None)]
    callback.on_report(None, Path("nowhere"), 1)
    assert "did not take the report (no server). The run continues." in caplog.text
