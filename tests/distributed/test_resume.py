"""Real processes, really killed: the run goes on over any number of them, and ends in the same bytes."""

import json
import os
import subprocess
import sys

import pytest

from .test_processes import ROOT, assert_same_results, finish, launch, start, torchrun

SOAK = ROOT / "tests" / "robustness" / "soak.py"


def soak(tmp_path, *options):
    counted = tmp_path / "soak.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SOAK), "--json", str(counted), *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(counted.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["partition, best", "blocks, gauss_newton", "random, racing", "adapt", "unlabeled"])
def test_a_killed_run_ends_in_the_same_bytes_over_one_two_and_three_processes(case, tmp_path):
    counted = soak(tmp_path, "--kills", "6", "--cases", case, "--seed", "1")
    assert counted["kills"] >= 6 and counted["kills_by_case"] == {case: counted["kills"]}
    assert counted["mismatches"] == counted["cells_scored_twice"] == 0 and counted["cells"] > 100


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on(tmp_path):
    counted = soak(tmp_path, "--kills", "1", "--cases", "partition, best", "--processes", "2", "1", "--seed", "4")
    assert counted["kills"] >= 1 and counted["kills_by_processes"]["2"] >= 1
    assert counted["mismatches"] == counted["cells_scored_twice"] == 0


@pytest.mark.slow
def test_torchrun_starts_lost_workers_again_and_the_run_ends_in_the_same_bytes(tmp_path):
    code, log = launch(tmp_path / "whole", 2, ["partition-data"])
    assert code == 0, log[-3000:]
    folder = tmp_path / "lost"
    folder.mkdir()
    with open(folder / "log.txt", "w+") as file:
        options = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "2"]
        [code] = finish([start([*torchrun(*options), str(folder), "lost-partition-data"], file)])
        file.seek(0)
        log = file.read()
    assert code == 0 and "exitcode: -9" in log, log[-3000:]
    assert_same_results(folder / "partition-data", tmp_path / "whole" / "partition-data", "a lost worker")
