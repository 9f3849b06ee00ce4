"""Runs over several processes, really started: the same bytes as over one, and no hang when one fails."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smd_hf.run.records import LEDGER_NAME

from .worker import CASES, COMMON, FAILURES

ROOT = Path(__file__).parents[2]
TIMED = ("seconds", "parent_passes")  # of the cost: parts of a pass are counted by their time
LAUNCHED_IN = 500  # seconds after which a launch counts as a hang
ENDED_IN = COMMON["ddp_timeout"] - 10  # seconds in which a failure ends all processes, before any is tired of waiting

RUNTIMES = ["openvino", "compiled", "bf16"]
EACH = [f"{case}-{spread}" for case in CASES if case not in RUNTIMES for spread in ("data", "children", "auto")]
IN_RUNTIMES = [f"{case}-{spread}" for case in RUNTIMES for spread in ("data", "children")]
SOME = [
    *("partition-children", "blocks-data", "blocks-auto", "race-children", "metric-data"),
    *("steps-data", "unlabeled-data", "soup-children", "front-data", "front-children", "few-data", "few-children"),
]
FEW = ["openvino-data"]
FAILS = [f"fail-{what}" for what in FAILURES]


def torchrun(*options, worker="worker"):
    return [sys.executable, "-m", "torch.distributed.run", *options, "--module", f"tests.distributed.{worker}"]


def start(command, log):
    """A launcher in a process group of its own, which writes to a file: a full pipe would stop it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(launchers, seconds=LAUNCHED_IN):
    """Their exit codes; kills what is left of them after so many seconds, and fails."""
    try:
        return [launcher.wait(seconds) for launcher in launchers]
    except subprocess.TimeoutExpired:
        pytest.fail(f"A run over several processes has not ended after {seconds} seconds.")
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                # torchrun passes the signal on to its workers, which have sessions of their own.
                launcher.terminate()
                launcher.wait(30)


def launch(folder, processes, names, seconds=LAUNCHED_IN, worker="worker"):
    folder.mkdir(parents=True)
    with open(folder / "log.txt", "w+") as log:
        command = torchrun("--standalone", "--nproc_per_node", str(processes), worker=worker)
        launcher = start([*command, str(folder), *names], log)
        [code] = finish([launcher], seconds)
        log.seek(0)
        return code, log.read()


def seen_by(folder, processes, name):
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs cases in one process, without a launcher, each once; returns the folder of all that have run."""
    folder = tmp_path_factory.mktemp("alone")

    def run(names):
        cases = dict.fromkeys(f"{name.partition('-')[0]}-data" for name in names)
        missing = [case for case in cases if not (folder / case).exists()]
        if missing:
            with open(folder / "log.txt", "w") as log:
                command = [sys.executable, "-m", "tests.distributed.worker", str(folder), *missing]
                assert finish([start(command, log)]) == [0], (folder / "log.txt").read_text()[-3000:]
        return folder

    return run


def comparable(path):
    """A file's content, less what is measured in seconds and the way of spreading."""
    if path.name != "gain_report.json":
        return path.read_bytes()
    report = json.loads(path.read_text())
    report["cost"] = {key: value for key, value in report["cost"].items() if key not in TIMED}
    for arguments in ("arguments", "all_arguments"):
        report[arguments].pop("spread", None)
    return report


def assert_same_results(folder, expected, what):
    """Every weight, child, delta and report of a run is that of another; its files are the same files."""
    found, wanted = ({path.relative_to(each) for path in each.rglob("*")} for each in (folder, expected))
    assert found == wanted, what
    compared = [
        path
        for path in wanted
        # The ledger says how many seconds were spent.
        if path.parts[0] != LEDGER_NAME
        and (path.suffix in (".safetensors", ".jsonl") or path.name == "gain_report.json")
    ]
    assert len(compared) >= 3
    for path in compared:
        assert comparable(folder / path) == comparable(expected / path), f"{what}: {path}"


def assert_equal_to_one_process(alone, folder, processes, names):
    alone = alone(names)
    for name in names:
        what = f"{name} over {processes} processes"
        reference = f"{name.partition('-')[0]}-data"
        assert_same_results(folder / name, alone / reference, what)
        [one] = seen_by(alone, 1, reference)
        for rank, seen in enumerate(seen_by(folder, processes, name)):
            assert seen["hash"] == one["hash"], what
            # All processes have the report of the first, when its files are there, and none but the first writes any but the
            # ledger of what it scores.
            assert seen["report"]["evolved"] == one["report"]["evolved"], what
            writes = [write for write in seen["writes"] if f"/{LEDGER_NAME}" not in write]
            assert bool(writes) == (rank == 0), f"{what}, by process {rank}: {writes[:5]}"
            # Trainer fills the last batch up with images it has had: the loss differs a little, the metrics do not.
            for key, value in one["evaluated"].items():
                if key.startswith("eval_") and not key.endswith(("runtime", "per_second", "loss")):
                    assert seen["evaluated"][key] == pytest.approx(value, abs=1e-6), f"{what}: {key}"
            assert seen["evaluated"]["eval_loss"] == pytest.approx(one["evaluated"]["eval_loss"], rel=0.5), what


@pytest.mark.parametrize(
    "processes, names",
    [
        (2, FEW),
        pytest.param(1, EACH, marks=pytest.mark.slow),
        pytest.param(2, [*SOME, "everything-data", "everything-children"], marks=pytest.mark.slow),
        pytest.param(3, SOME, marks=pytest.mark.slow),
        *[pytest.param(processes, IN_RUNTIMES, marks=pytest.mark.slow) for processes in (2, 3)],
        *[pytest.param(processes, EACH, marks=pytest.mark.slow) for processes in (2, 3, 4)],
    ],
    ids=["2-few", "1-each", "2-some", "3-some", "2-runtimes", "3-runtimes", "2-each", "3-each", "4-each"],
)
def test_any_number_of_processes_gives_the_same_bytes(processes, names, alone, tmp_path):
    folder = tmp_path / "run"
    fails = FAILS if processes > 1 else []
    code, log = launch(folder, processes, [*names, *fails])
    assert code == 0, log[-3000:]
    assert_equal_to_one_process(alone, folder, processes, names)
    for name in fails:
        first, failed, *others = (seen["error"] for seen in seen_by(folder, processes, name))
        # Every process ends, the one that failed with its own error and the others with its name.
        error = {"fail-image": "OSError: the disk", "fail-metric": "ZeroDivisionError: there is no such class"}[name]
        assert failed.startswith(error)
        assert all(f"Process 1 of {processes} failed: {error}" in other for other in [first, *others])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_have_done_their_work_end_well(processes, tmp_path):
    """Where they left it to the interpreter to end gloo's threads, about one in ten of them was aborted."""
    code, log = launch(tmp_path / "run", processes, [], worker="spread_worker")
    assert code == 0, log[-3000:]
    assert [(tmp_path / "run" / f"group.{rank}").read_text() for rank in range(processes)] == ["False"] * processes


@pytest.mark.slow
def test_a_process_that_raises_ends_the_whole_run(tmp_path):
    code, log = launch(tmp_path / "run", 2, ["crash-image", "few-data"], ENDED_IN)
    assert code != 0 and "the disk of this machine is gone" in log
    assert not (tmp_path / "run" / "few-data").exists()
    assert not (tmp_path / "run" / "crash-image" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_whole_run(tmp_path):
    code, log = launch(tmp_path / "run", 3, ["crash-death", "few-data"], ENDED_IN)
    assert code != 0 and "exitcode  : 7" in log
    assert not (tmp_path / "run" / "few-data").exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("backend, processes", [("static", 1), ("c10d", 2)], ids=["static", "c10d"])
def test_two_nodes(backend, processes, alone, tmp_path):
    """Two launchers, as on two machines: each starts its own processes, which meet on one of the two."""
    folder, port, launchers = tmp_path / "run", free_port(), []
    folder.mkdir()
    names = ["partition-data", "few-children", "race-auto"]
    logs = [open(folder / f"log-{node}.txt", "w+") for node in range(2)]  # noqa: SIM115
    try:
        for node, log in enumerate(logs):
            options = ["--nnodes", "2", "--nproc_per_node", str(processes), "--node_rank", str(node)]
            if backend == "static":
                options += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
            else:
                options += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "smd"]
            launchers.append(start([*torchrun(*options), str(folder), *names], log))
        codes = finish(launchers)
        assert codes == [0, 0], "\n".join((folder / f"log-{node}.txt").read_text()[-2000:] for node in range(2))
    finally:
        for log in logs:
            log.close()
    assert_equal_to_one_process(alone, folder, 2 * processes, names)


def test_the_cases_are_uneven():
    """32 fitness images in 3 batches; populations which no number of processes divides."""
    assert COMMON["per_device_eval_batch_size"] == 12
    assert {
        (CASES[case]["population_size"] + 1) % processes for case in ("partition", "blocks") for processes in (3, 4)
    } > {0}
