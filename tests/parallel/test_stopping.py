"""Runs that are told to end: by Ctrl-C, by SIGTERM; in this process, and as processes of the command line."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from smd_hf.cli.main import main
from smd_hf.models.checkpoints import weights_hash
from smd_hf.parallel.stopping import GRACE, OutOfTime, Stop, Terminated
from tests.distributed.worker import make_dataset, make_trainer
from tests.plain import PLAIN_OPTIONS
from tests.tiny import label_names, save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from smd_hf.cli.main import main; sys.exit(main())"
CHILDREN = "60"  # so many that a run cannot be over before it is told to end
SIGNALS = [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]


def at_pass(trainer, number, act):
    """Does something in the midst of the model's pass of that number, from now on."""
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1
        if passes == number:
            act()

    trainer.model.register_forward_hook(count)
    return lambda: passes


ALONE = """
import atexit, importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("stopping", "smd_hf/parallel/stopping.py")
stopping = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stopping)
"""
"""The module without the package, which takes seconds to import."""

LATE = """
number, when = int(sys.argv[1]), sys.argv[2]

def tell(kill=os.kill, process=os.getpid(), number=number):
    kill(process, number)

class Last:
    def __del__(self, tell=tell):
        tell()

if when == "at exit":
    atexit.register(tell)  # before the run, and so called after what the run registers
if when == "at the end":
    kept = Last()
try:
    with stopping.Stop().listening(num_processes=2):
        raise stopping.Interrupted if number == signal.SIGINT else stopping.Terminated
except BaseException as ending:
    if when == "on the way":
        tell()
    sys.exit(130 if number == signal.SIGINT else ending.code)
"""


@pytest.mark.parametrize("when", ["on the way", "at exit", "at the end"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_ends_as_another_was_told_may_be_told_late(number, code, when):
    command = [sys.executable, "-c", ALONE + LATE, str(int(number)), when]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (code, b"")


def test_only_one_late_signal_is_passed_over():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("again"))
    try:
        with pytest.raises(Terminated), Stop().listening(num_processes=2):
            raise Terminated
        signal.raise_signal(signal.SIGTERM)
        assert not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["again"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number, kind, code", SIGNALS)
@pytest.mark.parametrize("recombination", ["best", "gauss_newton"])
def test_a_signal_ends_the_run_after_the_cell_with_the_parent_in_the_model(
    number, kind, code, recombination, tmp_path
):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=4, recombination=recombination)
    parent, handlers = weights_hash(trainer.model), [signal.getsignal(each) for each, *_ in SIGNALS]
    # 3 passes over the test images, 3 of the parent over the fitness images, then the children's.
    passes = at_pass(trainer, 9, lambda: signal.raise_signal(number))
    with pytest.raises(kind, match="0 of 2 generations"):
        trainer.train()
    assert passes() == 9 and weights_hash(trainer.model) == parent
    assert [signal.getsignal(each) for each, *_ in SIGNALS] == handlers


def test_sigterm_that_nothing_catches_is_exit_code_143():
    with pytest.raises(SystemExit) as end:
        raise Terminated("why")
    assert end.value.code == 143 and str(end.value) == "why"


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=4)

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still running")

    at_pass(trainer, 8, twice)
    with pytest.raises(KeyboardInterrupt) as end:
        trainer.train()
    assert not str(end.value)


def test_a_second_sigterm_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=4)
    at_pass(trainer, 8, lambda: [signal.raise_signal(signal.SIGTERM) for _ in range(2)])
    with pytest.raises(Terminated):
        trainer.train()


def test_a_signal_ends_the_choice_of_a_runtime_at_once(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=4)

    def compile(*_):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("still compiling")

    monkeypatch.setattr(trainer.evolution.evaluator, "_choice", SimpleNamespace(settle=compile))
    with pytest.raises(Terminated, match="0 of 2 generations"):
        trainer.train()


def test_a_signal_ends_the_reading_of_images_too(tmp_path):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=4, per_device_eval_batch_size=2)
    trainer.eval_dataset = None
    read, collate = [], trainer.images.fitness.collator

    def collator(rows):
        read.append(len(rows))
        if len(read) == 3:
            signal.raise_signal(signal.SIGINT)
        return collate(rows)

    trainer.images.fitness.collator = collator
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    # Threads read on until the main one has seen the signal, on a busy machine a few batches more.
    assert 3 <= len(read) < len(trainer.images.fitness)


def test_in_another_thread_signals_are_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, "data", "resnet", population_size=2, num_generations=1)
    handlers, seen = signal.getsignal(signal.SIGINT), []
    at_pass(trainer, 8, lambda: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert seen == [handlers] and trainer.state.global_step == 1


class TestStop:
    def test_it_goes_by_the_deadline_only_inside(self):
        stop = Stop()
        with stop.before(None):
            stop.check()
        with stop.before(0.0), pytest.raises(OutOfTime):
            stop.check()
        stop.check()

    def test_a_collective_that_fails_after_a_signal_is_its_consequence(self):
        stop = Stop()
        with stop.listening():
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Terminated), stop.waiting():
                raise RuntimeError("Connection closed by peer")

    def test_a_collective_that_fails_first_waits_for_the_signal_that_follows(self):
        stop = Stop()
        with stop.listening():
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
            with pytest.raises(Terminated), stop.waiting():
                raise RuntimeError("Connection closed by peer")

    def test_a_collective_that_fails_for_itself_keeps_its_error(self):
        stop = Stop()
        with stop.listening(), pytest.raises(RuntimeError, match="by peer"), stop.waiting():
            raise RuntimeError("Connection closed by peer")

    def test_the_descriptor_for_signals_is_put_back(self):
        assert signal.set_wakeup_fd(-1) == -1
        with Stop().listening(num_processes=2):
            pass
        assert signal.set_wakeup_fd(-1) == -1

    def test_a_process_that_waits_in_vain_ends_by_itself(self):
        code = (
            "stop = stopping.Stop()\n"
            "with stop.listening(num_processes=2), stop.waiting():\n"
            "    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
            "    time.sleep(60)\n"
        )
        start = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", ALONE + code], cwd=ROOT, capture_output=True, text=True, timeout=50
        )
        assert process.returncode == 143 and "other processes do not respond: it exits" in process.stderr
        assert GRACE < time.monotonic() - start < GRACE + 25


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    save_tiny_checkpoint("resnet", root / "model")
    for name, count in (("train", 40), ("test", 20)):
        make_dataset(count, len(name), label_names(4)).to_parquet(str(root / f"{name}.parquet"))
    return root


def arguments(output_dir, *more):
    return [
        *("evolve", *PLAIN_OPTIONS, "--model_name_or_path", "model", "--train_file", "train.parquet"),
        *("--validation_file", "test.parquet", "--output_dir", str(output_dir), "--sigma", "0.3"),
        *("--decomposition", "random", "--recombination", "best", "--no_elitism", "--disable_tqdm", "true"),
        *("--save_strategy", "no", *more),
    ]


def start(root, output_dir, *more, environment=None, **options):
    """`smd-hf evolve` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments(output_dir, *more)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_sigterm_to_all_processes_ends_a_run_that_compiles(root, tmp_path):
    """As `timeout` sends it. The run does not wait for the compiler, whose processes may have died of the same signal."""
    compiler = tmp_path / "compiler"
    process = start(
        root,
        tmp_path / "out",
        "--runtime",
        "compiled",
        environment={"TORCHINDUCTOR_CACHE_DIR": str(compiler)},
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + 300
        while not list(compiler.rglob("*.cpp")) and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and "Nothing was saved" in err


def cells_in(folder):
    return sum(path.read_bytes().count(b"\n") for path in (folder / "ledger").rglob("rank-*.jsonl"))


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_command_says_how_to_go_on_and_goes_on(number, code, root, tmp_path, monkeypatch):
    process = start(root, tmp_path / "out", "--population_size", CHILDREN)
    try:
        give_up = time.monotonic() + 300
        while cells_in(tmp_path / "out") < 20 and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and "Traceback" not in err, err
    last = err.strip().splitlines()[-1]
    assert "0 of 1 generations were finished" in last and last.endswith(
        "The same command with --resume continues the run."
    )

    if number == signal.SIGTERM:
        return
    monkeypatch.chdir(root)
    assert 20 <= cells_in(tmp_path / "out") < 3 * int(CHILDREN)
    for name, more in (("out", ["--resume"]), ("whole", [])):
        assert main(arguments(tmp_path / name, "--population_size", CHILDREN, *more)) == 0
    files = [tmp_path / name / "model.safetensors" for name in ("out", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_to_go_on_where_nothing_is_begins_anew(root, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(root)
    assert main(arguments(tmp_path / "out", "--population_size", "2", "--resume")) == 0
    assert "There is no run in" in caplog.text and "begins anew" in caplog.text
    assert (tmp_path / "out" / "model.safetensors").is_file()
