"""Tasks other than classification over several processes, really started and really killed: the same bytes as over one."""

import json

import pytest
import torch

from tests.tasks.each import ALL

from .test_processes import assert_same_results, launch

SPREAD = ("data", "children")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Saves the checkpoint of a task and runs it in this process, each once; returns the folder of both."""
    folder = tmp_path_factory.mktemp("alone")

    def run(task):
        if not (folder / task).exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            ALL[task].save(folder / task)
            trainer = ALL[task].trainer(folder / f"{task}-run", folder / task)
            trainer.train()
            torch.set_num_threads(threads)
            # Had no child taken the parent's place, there would be little to compare.
            parent, evolved = (folder / name / "model.safetensors" for name in (task, f"{task}-run"))
            assert parent.read_bytes() != evolved.read_bytes()
        return folder

    return run


def launched(alone, base, processes, names):
    """The launcher's exit code, and the end of what was printed; runs are left in folders of their names below `base`."""
    for name in names:
        alone(name.rpartition(":")[2].partition("-")[0])
    folder = base / f"launch-{len(list(base.glob('launch-*')))}"
    code, log = launch(folder, processes, names, worker="task_worker")
    return code, log[-3000:]


@pytest.fixture
def base(alone, request):
    folder = alone("detection") / request.node.name
    folder.mkdir()
    return folder


def assert_equal(alone, base, name):
    task = name.partition("-")[0]
    assert_same_results(base / name, alone(task) / f"{task}-run", name)


@pytest.mark.slow
def test_a_detector_is_evolved_to_the_same_bytes_over_two_processes(alone, base):
    code, log = launched(alone, base, 2, ["detection-children"])
    assert code == 0, log
    assert_equal(alone, base, "detection-children")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_bytes(processes, alone, base):
    names = [f"{task}-{spread}" for task in ALL for spread in SPREAD]
    code, log = launched(alone, base, processes, names)
    assert code == 0, log
    for name in names:
        assert_equal(alone, base, name)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(1, 2), (2, 3), (3, 1)], ids=["1-2", "2-3", "3-1"])
@pytest.mark.parametrize("task", ALL)
def test_a_killed_run_goes_on_to_the_same_bytes(task, processes, alone, base):
    before, after = processes
    code, log = launched(alone, base, before, [f"killed:{task}-data"])
    assert code != 0 and "exitcode: -9" in log.replace("exitcode  :", "exitcode:"), log
    assert not (base / f"{task}-data" / "gain_report.json").exists()
    code, log = launched(alone, base, after, [f"resumed:{task}-data"])
    assert code == 0, log
    found, expected = base / f"{task}-data", alone(task) / f"{task}-run"
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    reports = [json.loads((folder / "gain_report.json").read_text()) for folder in (found, expected)]
    for entry in ("parent", "evolved", "difference", "verdict"):
        assert reports[0][entry] == reports[1][entry]
