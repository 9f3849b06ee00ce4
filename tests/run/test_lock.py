"""One run at a time in an output folder; a lock that ends with its process."""

import json
import os
import signal
import time
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import pytest

from smd_hf import SMDError
from smd_hf.parallel.processes import Processes
from smd_hf.run.lock import HOLDER_NAME, LOCK_NAME, locked
from tests.distributed.worker import make_trainer


@contextmanager
def another_process(act):
    """A process that does something and then sleeps; its id."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        # Whatever happens, it never goes on as a second test process.
        try:
            with act():
                os.write(writer, b"!")
                time.sleep(100)
        finally:
            os._exit(0)
    try:
        os.read(reader, 1)
        yield process
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def take(folder):
    with locked(folder, Processes().gather, holds=True):
        return True


def test_a_second_run_is_refused_with_the_name_of_the_first_and_kill_9_frees_the_folder(tmp_path):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=2, num_generations=1)
    with another_process(partial(locked, tmp_path, Processes().gather, holds=True)) as holder:
        since = json.loads((tmp_path / HOLDER_NAME).read_text())["since"]
        with pytest.raises(SMDError) as error:
            trainer.train()
        assert f"(process {holder} on " in str(error.value) and f"since {since}" in str(error.value)
        assert not (tmp_path / "children.jsonl").exists()
    # It was killed.
    trainer.train()
    assert (tmp_path / "model.safetensors").is_file()


def test_it_is_free_after_a_run_and_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, Processes().gather, holds=True):
        with pytest.raises(SMDError, match="in use by another run"):
            take(tmp_path)
        raise ZeroDivisionError
    assert take(tmp_path) and take(tmp_path)


def test_what_is_left_of_a_lock_stands_in_nobodys_way(tmp_path):
    for text in ("", "{", json.dumps({"process": os.getpid(), "machine": "here", "since": "now"})):
        (tmp_path / LOCK_NAME).write_text(text)
        assert take(tmp_path)


def test_a_process_forked_by_the_run_does_not_hold_on_to_it(tmp_path):
    with ExitStack() as stack:
        with locked(tmp_path, Processes().gather, holds=True):
            stack.enter_context(another_process(nullcontext))
            with pytest.raises(SMDError):
                take(tmp_path)
        assert take(tmp_path)


def test_only_the_process_that_writes_takes_it(tmp_path):
    with locked(tmp_path / "none", Processes().gather, holds=False):
        assert not (tmp_path / "none").exists()
