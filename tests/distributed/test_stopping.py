"""Runs over several processes that are told to end: all of them do, within seconds, and none waits for another in vain."""

import json
import os
import signal
import sys
import time

import pytest

from smd_hf.parallel.stopping import GRACE

from .stopped_worker import HANGS
from .test_processes import finish, start

SOON = 20.0  # seconds, on a machine with much else to do; torchrun kills after 30


def launched(folder, processes, case, log):
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["--no-python", sys.executable, "-m", "tests.distributed.exit_codes", str(folder)]
    return start([*command, sys.executable, "-m", "tests.distributed.stopped_worker", str(folder), case], log)


def wait_for(launcher, log, *paths):
    give_up = time.monotonic() + 300
    while not all(path.exists() for path in paths):
        if launcher.poll() is not None or time.monotonic() > give_up:
            log.seek(0)
            pytest.fail(f"The run did not get under way: {log.read()[-3000:]}")
        time.sleep(0.05)


def told(folder, case, tell, processes=2):
    """Exit codes of the processes, and how many seconds after `tell(launcher)` each has ended."""
    folder = folder / case
    with open(folder.with_suffix(".log"), "w+") as log:
        launcher = launched(folder, processes, case, log)
        try:
            wait_for(launcher, log, *(folder / f"busy.{rank}" for rank in range(processes)))
            at = time.time()
            tell(launcher, folder)
            finish([launcher], 60)
        finally:
            if launcher.poll() is None:
                launcher.kill()
    ended = [(folder / f"exit.{rank}").read_text().split() for rank in range(processes)]
    return [int(code) for code, _ in ended], [float(end) - at for _, end in ended]


def tell_launcher(launcher, folder):
    os.kill(launcher.pid, signal.SIGTERM)


def tell_second(launcher, folder):
    os.kill(int((folder / "pid.1").read_text()), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_sigterm_to_the_launcher(processes, tmp_path):
    codes, seconds = told(tmp_path, "often", tell_launcher, processes)
    assert codes == [143] * processes and max(seconds) < SOON
    assert not (tmp_path / "often" / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_sigterm_to_one_of_which_the_others_are_far_from_hearing(tmp_path):
    codes, seconds = told(tmp_path, "seldom", tell_second)
    # It cannot wait for the others to come round; the launcher tells them when it is gone.
    assert codes == [143, 143] and max(seconds) < GRACE + SOON
    assert json.loads((tmp_path / "seldom" / "out" / "ledger" / "header.json").read_text())


@pytest.mark.slow
def test_sigterm_to_one_of_those_that_meet_often(tmp_path):
    codes, seconds = told(tmp_path, "often", tell_second)
    assert codes == [143, 143] and max(seconds) < SOON


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    codes, seconds = told(tmp_path, "often", lambda launcher, _: os.kill(launcher.pid, signal.SIGINT))
    assert codes == [130, 130] and max(seconds) < SOON


@pytest.mark.slow
def test_a_process_that_waits_for_one_which_hangs_ends_by_itself(tmp_path):
    codes, seconds = told(tmp_path, "hung", tell_launcher)
    assert codes == [143, 143]
    assert GRACE < seconds[0] < GRACE + SOON and seconds[1] > 5
    assert seconds[1] < HANGS + SOON


@pytest.mark.slow
def test_the_time_of_the_first_is_the_time_of_all(tmp_path):
    with open(tmp_path / "log.txt", "w") as log:
        assert finish([launched(tmp_path / "hours", 2, "hours", log)], 300) == [0]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Stopped by max_hours") == 1
    stopped = [line.partition(", of which")[0] for line in log.splitlines() if line.startswith("stopped: {")]
    assert len(stopped) == 2 and len(set(stopped)) == 1
    assert json.loads((tmp_path / "hours" / "out" / "gain_report.json").read_text())["stopped"]["finished"] == 0
