"""What the progress bar shows: that it moves, counts what is done, and tells about how long it will take."""

import os
import pty
import re
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import default_data_collator

import smd_hf.scoring.bars
from smd_hf import EvolutionTrainer
from smd_hf.data.batches import ImageBatches
from smd_hf.parallel.processes import Processes
from smd_hf.run.progress import EvolutionProgressCallback
from smd_hf.scoring.bars import ScoringBar, TickingBar
from smd_hf.scoring.work import CallWork, Work
from tests.plain import plain_arguments
from tests.slow_model import slow_model, virtual_time
from tests.tiny import tiny_pixels

ROOT = Path(__file__).parents[2]
WITHIN = 1.15
"""The factor within which the total time is foretold."""

PERCENT = re.compile(r"generation \d+/\d+[^|]*?: +(\d+)%")


class Told(Work):
    """Remembers what it is told."""

    def __init__(self):
        self.images = self.known = self.done = 0.0

    def begin(self, images, known):
        self.images, self.known = images, known

    def advance(self, images):
        self.done += images


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from(["data", "children", "auto"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_each_process_counts_the_work_of_all(variants, images, size, processes, mode, seed):
    random = np.random.default_rng(seed)
    batches = ImageBatches(range(images), list, size)
    numbers = range(len(batches))
    weights, recording = random.uniform(0.01, 1, variants).tolist(), float(random.integers(2))
    known = {(v, n) for v in range(variants) for n in numbers if random.random() < 0.3 * (seed % 2)}
    for rank in range(processes):
        wanted = Processes(mode, rank, processes).share(variants, numbers, known)
        told = Told()
        call = CallWork(told, weights, recording, batches, numbers, wanted, known)
        assert told.images == pytest.approx(images * (sum(weights) + recording))
        for number, each in wanted.items():
            batch = torch.zeros(batches.size_of(number))
            call.recorded(batch)
            for variant in each:
                call.scored(variant, batch)
        if wanted:
            assert told.done == pytest.approx(told.images - told.known)


def rows(count):
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(count, 8))]


def make_trainer(folder, seconds=1.0, tests=16, **kwargs):
    defaults = dict(
        population_size=8,
        sigma=0.3,
        num_generations=2,
        per_device_eval_batch_size=8,
        use_cpu=True,
        elitism=False,
        disable_tqdm=False,
        save_strategy="no",
    )
    return EvolutionTrainer(
        slow_model(seconds),
        plain_arguments(str(folder), **defaults | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows(80),
        eval_dataset=rows(tests),
    )


@pytest.fixture
def seen(monkeypatch):
    """(time, done, known, planned) each time that the bar is told, by the time that the model spends."""
    seen, clock = [], virtual_time(monkeypatch)
    on_work = EvolutionProgressCallback.on_work

    def watched(self, done, known, planned):
        seen.append((clock(), done, known, planned))
        on_work(self, done, known, planned)

    monkeypatch.setattr(EvolutionProgressCallback, "on_work", watched)
    return seen


def assert_foretold(seen, within=WITHIN):
    """At a third, a half and two thirds of the time, the bar's own arithmetic gives about the whole time."""
    start, end = seen[0][0], seen[-1][0]
    whole = end - start
    for share in (1 / 3, 1 / 2, 2 / 3):
        moment, done, known, planned = next(each for each in seen if each[0] >= start + share * whole)
        foretold = (moment - start) * (planned - known) / (done - known)
        assert whole / within <= foretold <= whole * within, f"at {share:.2f} of {whole:.2f} s: {foretold:.2f} s"


def assert_moves(seen):
    """From the first batch on, and never back; in the end, all that was planned is done."""
    start, whole = seen[0][0], seen[-1][0] - seen[0][0]
    first = next(moment for moment, done, known, _ in seen if done > known)
    assert first - start < 0.1 * whole
    done = [each[1] for each in seen]
    assert done == sorted(done)
    pauses = np.diff([moment for moment, *_ in seen])
    assert pauses.max() < 0.2 * whole
    assert seen[-1][1] == pytest.approx(seen[-1][3])


BLOCKS = dict(decomposition="blocks", population_size=8)

CASES = {
    "best": dict(recombination="best", recombination_top_k=3),
    "soup": dict(recombination="greedy_soup", recombination_top_k=3),
    "mean": dict(recombination="top_k_mean"),
    "steps": dict(recombination="gauss_newton", num_generations=1),
    "steps of cheap children": BLOCKS | dict(recombination="gauss_newton", num_generations=1),
    "cheap children": BLOCKS | dict(recombination="best"),
    "only the last block": dict(mutable_parameters=["blocks.3*", "head"], decomposition="dense", num_generations=1),
    "race": dict(racing="halving", recombination="best", recombination_top_k=2, population_size=16),
    "race of cheap children": BLOCKS
    | dict(racing="halving", recombination="best", recombination_top_k=2, population_size=16),
    "race that ends in steps": dict(
        racing="halving", recombination="top_k_mean", population_size=12, num_generations=3
    ),
    "ensemble and children": dict(ensemble_size=3, save_children=2, num_generations=1, tests=40),
    "fresh samples": dict(fitness_samples_per_generation=24, num_generations=3, elitism=True),
}


DEFAULT = (
    "soup",
    "steps of cheap children",
    "race",
    "race that ends in steps",
    "ensemble and children",
    "fresh samples",
)


@pytest.mark.parametrize(
    "case", [case if case in DEFAULT else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_bar_moves_and_the_time_left_is_about_right(case, seen, tmp_path, capfd):
    make_trainer(tmp_path, **CASES[case]).train()
    assert_moves(seen)
    assert_foretold(seen)
    assert "100%" in capfd.readouterr().err


def test_a_limit_of_passes_limits_what_is_planned(seen, tmp_path):
    trainer = make_trainer(tmp_path, num_generations=50, max_forward_passes=40)
    trainer.train()
    assert trainer.stopped["limit"] == "max_forward_passes"
    assert_foretold(seen)


def test_a_limit_of_time_limits_the_time_left(seen, tmp_path):
    trainer = make_trainer(tmp_path, num_generations=1000, max_hours=6000 / 3600)
    trainer.train()
    assert trainer.stopped["limit"] == "max_hours"
    assert_foretold(seen)


def test_what_a_resumed_run_knows_does_not_count_as_fast(seen, tmp_path):
    trainer = make_trainer(tmp_path, recombination="gauss_newton", num_generations=1)
    calls = 0

    def breaks(*_):
        nonlocal calls
        calls += 1
        if calls == 50:
            raise KeyboardInterrupt

    trainer.model.register_forward_pre_hook(breaks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    seen.clear()
    make_trainer(tmp_path, recombination="gauss_newton", num_generations=1).train(resume_from_checkpoint=True)
    assert seen[-1][2] > 0
    assert_moves([each for each in seen if each[1] > 0])
    assert_foretold(seen)


def test_no_bar_where_none_is_wanted(seen, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(smd_hf.scoring.bars, "DELAY", 0.0)
    trainer = make_trainer(tmp_path, num_generations=1, sigma=None, disable_tqdm=True)
    trainer.train()
    assert seen == [] and "%|" not in capfd.readouterr().err


def test_each_phase_shows_something(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(smd_hf.scoring.bars, "DELAY", 0.0)
    make_trainer(tmp_path, 0.0, num_generations=1, sigma=None, ensemble_size=2, calibration_samples=32).train()
    err = capfd.readouterr().err
    for phase in (
        "Testing the parent",
        "Calibrating sigma",
        "Choosing the ensemble",
        "Testing the evolved model",
        "Writing the results",
    ):
        assert f"{phase}:" in err, phase


def test_a_bar_goes_on_while_nothing_is_counted(capfd, monkeypatch):
    monkeypatch.setattr(smd_hf.scoring.bars, "DELAY", 0.1)
    monkeypatch.setattr(smd_hf.scoring.bars, "TICK", 0.1)
    with TickingBar("Fitting"):
        time.sleep(1.3)
    with ScoringBar("Scoring") as bar:
        bar.begin(10, known=2)
        time.sleep(0.3)
        bar.advance(4)
        time.sleep(0.3)
        bar.end()
    with TickingBar("Done at once"):
        pass
    err = capfd.readouterr().err
    assert "Fitting: 00:00" in err and "Fitting: 00:01" in err
    assert all(f" {count}/10.0 " in err for count in ("2.00", "6.00", "10.0")), err
    assert "Done at once" not in err


PROGRAM = textwrap.dedent(
    """
    import sys
    from tests.run.test_progress import make_trainer
    make_trainer(
        sys.argv[1], seconds=1e-3, recombination="gauss_newton", population_size=16, num_generations=1, per_device_eval_batch_size=4
    ).train()
    """
)


@pytest.mark.slow
def test_a_terminal_sees_the_bar_move_within_the_first_batches_of_a_gauss_newton_generation(tmp_path):
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (25, 120))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, env=environment, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    text, moments = "", []
    try:
        while chunk := read(main):
            text += chunk
            moments += [(time.monotonic(), int(each)) for each in PERCENT.findall(chunk)]
        assert process.wait(60) == 0, text[-2000:]
    finally:
        process.kill()
        os.close(main)
    (start, first), *_, (end, last) = moments
    assert first <= 5 and last == 100
    early = {percent for moment, percent in moments if moment < start + 0.25 * (end - start)}
    assert len(early) >= 5 and 0 < max(early) < 45, sorted(early)
    assert "images/s" in text and "best nll" in text


def read(terminal):
    try:
        return os.read(terminal, 65536).decode()
    except OSError:  # the other end is closed
        return ""
