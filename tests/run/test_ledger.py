"""What has been scored is never scored again, and comes back to the bit, wherever a run was ended."""

import json
import math
import resource
import shutil
import string
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerCallback

from smd_hf import SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.parallel.processes import Processes
from smd_hf.run.cells import Finished, read_cells, read_score, write_score
from smd_hf.run.identity import data_fingerprint
from smd_hf.run.ledger import CELLS_NAME, FINISHED_NAME, Ledger
from smd_hf.run.lines import LineWriter, read_lines, to_line
from smd_hf.run.records import LEDGER_NAME
from smd_hf.run.state import STATE_NAME
from smd_hf.scoring import sums as sums_module
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.record import ScoredCell
from smd_hf.scoring.scores import Cell, Score
from smd_hf.search.gauss_newton import GaussNewtonSums
from smd_hf.search.losses import cross_entropy
from tests.scoring.test_evaluator import CPU, PARENT, children_of, make_batches
from tests.test_trainer import make_dataset, make_trainer, weights
from tests.tiny import save_tiny_checkpoint, tiny_model

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=4), VALUES, min_size=1, max_size=3)


@st.composite
def finished(draw):
    """What a line may say: one cell, with or without logits, or a segment with its sums."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, classes = draw(st.integers(1, 17)), draw(st.none() | st.integers(1, 3))

    def cell():
        logits = None
        if classes is not None:
            logits = np.frombuffer(rng.bytes(4 * images * classes), np.float32).reshape(images, classes)
        nll = draw(st.floats())
        return Cell(rng.random(images) < 0.5, nll, math.isfinite(nll), logits)

    summed = draw(st.booleans())
    labels = draw(st.none() | st.just(rng.integers(0, 9, images)))
    cells = [ScoredCell(variant, 3, cell(), labels) for variant in range(draw(st.integers(2, 3)) if summed else 1)]
    totals = rng.normal(size=draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))) if summed else None
    return Finished(draw(st.integers(0, 5)), cells, 2.5, 7 if summed else None, totals)


def as_bytes(done):
    """All that a line holds, for comparison to the bit: NaN is equal to itself."""
    cells = [
        (
            scored.variant,
            scored.batch,
            None if scored.labels is None else scored.labels.tobytes(),
            scored.cell.correct.tobytes(),
            np.float64(scored.cell.nll_sum).tobytes() if scored.cell.nll_sum == scored.cell.nll_sum else "nan",
            scored.cell.finite,
            None if scored.cell.logits is None else (scored.cell.logits.shape, scored.cell.logits.tobytes()),
        )
        for scored in done.cells
    ]
    return done.call, cells, done.passes, done.segment, None if done.sums is None else done.sums.tobytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "rank-00000.jsonl"


@given(finished())
@settings(deadline=None, max_examples=30)
def test_what_was_scored_comes_back_to_the_bit(scratch, done):
    scratch.write_bytes(to_line(done.entry()))
    [(path, line, again)] = read_cells(scratch)
    assert (path, line) == (scratch, 1) and as_bytes(again) == as_bytes(done)


@given(st.lists(ENTRIES, max_size=4), st.data())
@settings(deadline=None, max_examples=30)
def test_a_file_torn_at_any_byte_keeps_its_whole_lines_and_goes_on(scratch, entries, data):
    lines = [to_line(entry) for entry in entries]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    scratch.write_bytes(content[:cut])
    whole = sum(len(b"".join(lines[: number + 1])) <= cut for number in range(len(lines)))
    assert [to_line(entry) for _, entry in read_lines(scratch)] == lines[:whole]
    writer = LineWriter(scratch)
    writer.write({"after": "the tear"})
    writer.close()
    assert [to_line(entry) for _, entry in read_lines(scratch)] == [*lines[:whole], to_line({"after": "the tear"})]


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=30)
def test_a_changed_byte_is_an_error_or_a_torn_end_and_never_another_value(scratch, entries, data):
    lines = [to_line(entry) for entry in entries]
    content = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    scratch.write_bytes(content)
    try:
        found = [to_line(entry) for _, entry in read_lines(scratch)]
    except SMDError as error:
        assert str(scratch) in str(error) and "Line " in str(error)
    else:
        assert found == lines[: len(found)] and len(found) == len(lines) - 1


@given(finished(), st.data())
@settings(deadline=None, max_examples=100)
def test_a_line_of_wrong_kinds_or_sizes_is_a_named_error(scratch, done, data):
    """The checksum is right: somebody has written this on purpose."""
    entry = done.entry()
    places = [entry, *entry["cells"]]
    place = data.draw(st.sampled_from(places))
    key = data.draw(st.sampled_from([*place, "other"]))
    if key in place and data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(VALUES | st.sampled_from([2**62, -1, 0.5, "AAAA", [2**40, 2**40]]))
    scratch.write_bytes(to_line(entry))
    try:
        [(_, _, again)] = read_cells(scratch)
    except SMDError as error:
        assert f"Line 1 of '{scratch}'" in str(error)
    else:
        assert sum(len(scored.cell.correct) for scored in again.cells) <= 17 * 3


@given(finished(), finished(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_a_score_is_kept_to_the_bit_and_is_whole_or_refused(scratch, inside, outside, both):
    def score_of(done):
        return Score({number: scored.cell for number, scored in enumerate(done.cells)})

    def content(score):
        return [np.concatenate([cell.correct for cell in score.cells.values()]).tobytes(), list(score.cells)]

    score = score_of(inside)
    score.ood = score_of(outside) if both else None
    write_score(scratch, score)
    again = read_score(scratch)
    assert content(again) == content(score) and (again.ood is None) == (not both)
    assert not both or content(again.ood) == content(score.ood)
    whole = scratch.read_bytes()
    scratch.write_bytes(whole[: whole.rstrip(b"\n").rfind(b"\n") + 1])
    with pytest.raises(SMDError, match="cells follow"):
        read_score(scratch)


def test_what_is_no_ledger_is_refused(tmp_path):
    deep = b'{"a":' + b"[" * 100_000
    for name, content in (("deep", deep), ("twice", b'{"a":1,"a":2}'), ("list", b"[]"), ("binary", b"\xff\xfe{")):
        path = tmp_path / name
        line = to_line(json.loads('{"a":1}'))
        path.write_bytes(line + content[:-1] + b',"crc":1}\n')
        with pytest.raises(SMDError, match="Line 2 of"):
            list(read_lines(path))
    assert list(read_lines(tmp_path / "missing")) == []
    (tmp_path / "link").symlink_to(tmp_path / "twice")
    with pytest.raises(SMDError, match="not a plain file"):
        list(read_lines(tmp_path / "link"))
    with pytest.raises(SMDError, match="not a plain file"):
        LineWriter(tmp_path / "link")
    (tmp_path / "ledger").symlink_to(tmp_path)
    with pytest.raises(SMDError, match="is a link"):
        Ledger.start(tmp_path / "ledger", Processes(), {"format": 1})
    assert (tmp_path / "twice").exists()


class Killed(Exception):
    """In the place of SIGKILL, where one process is to go on; real signals are sent in tests/distributed/test_resume.py."""


@contextmanager
def killed_at(line, monkeypatch, torn=False, scope=None):
    """Ends what happens inside at a line that is written to the ledger, or to a part of it, and which stays whole or torn."""
    write, count = LineWriter.write, 0

    def watched(writer, entry):
        nonlocal count
        count += scope in (None, Path(writer._file.name).parent.name)
        if count < line:
            return write(writer, entry)
        content = to_line(entry)
        writer._file.write(content[: len(content) // 2] if torn else content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LineWriter, "write", watched)
        yield


def keys_in(folder):
    """The cells in all files of a scope, each as often as it is there."""
    return [
        (path.parent.name, done.call, scored.variant, scored.batch)
        for file in sorted(folder.glob("*/rank-*.jsonl"))
        for path, _, done in read_cells(file)
        for scored in done.cells
    ]


@pytest.mark.parametrize("replay", [True, False], ids=["replayed", "whole"])
@pytest.mark.parametrize("summed", [True, False], ids=["sums", "cells"])
def test_scoring_goes_on_at_any_cell_without_scoring_one_twice(summed, replay, tmp_path, monkeypatch):
    monkeypatch.setattr(sums_module, "PART_SECONDS", 0.0)
    model = tiny_model("vit")
    variants = [PARENT, *children_of(model, directions=5, sigma=0.1)]
    batches = make_batches(22, cache_bytes=10**8)

    class Directions:
        direction, sign = 0, 1

    def gauss_newton():
        children = [Directions() for _ in variants[1:]]
        for number, child in enumerate(children):
            child.direction = number
        return GaussNewtonSums(children, cross_entropy()) if summed else None

    def score(ledger):
        evaluator = Evaluator(model, CPU, prefix_replay=replay)
        evaluator.ledger, totals = ledger, gauss_newton()
        with ledger.scope("part"):
            scores = evaluator.score(variants, batches, keep_logits=not summed, sums=totals)
            again = evaluator.score(variants[:2], batches, numbers=range(2, 4))
        found = [(score.nll, score.correct.tobytes()) for score in [*scores, *again]]
        logits = None if summed else [score.logits.tobytes() for score in scores]
        return found, logits, None if totals is None else totals.total.tobytes(), evaluator.images_forwarded

    whole = score(Ledger.start(tmp_path / "whole" / LEDGER_NAME, Processes(), {"format": 1}))
    lines = sum(len(file.read_text().splitlines()) for file in (tmp_path / "whole").rglob("rank-*.jsonl"))
    assert lines == (6 if summed else 6 * len(variants)) + 4
    for end in range(1, lines + 1, 4 if summed else 13):
        folder = tmp_path / str(end) / LEDGER_NAME
        with killed_at(end, monkeypatch, torn=end % 2 == 0), pytest.raises(Killed):
            score(Ledger.start(folder, Processes(), {"format": 1}))
        before = {path.name: path.stat().st_size for path in folder.rglob("rank-*.jsonl")}
        assert score(Ledger(folder, Processes(), resumed=True)) == whole
        keys = keys_in(folder / CELLS_NAME)
        assert len(set(keys)) == len(keys) == len(keys_in(tmp_path / "whole" / LEDGER_NAME / CELLS_NAME))
        # A third time, there is nothing left to score.
        after = {path.name: path.stat().st_size for path in folder.rglob("rank-*.jsonl")}
        assert score(Ledger(folder, Processes(), resumed=True)) == whole and after != before
        assert {path.name: path.stat().st_size for path in folder.rglob("rank-*.jsonl")} == after


def test_cells_that_do_not_fit_the_call_are_refused(tmp_path):
    model = tiny_model("vit")
    evaluator, batches = Evaluator(model, CPU), make_batches(10)
    evaluator.ledger = Ledger.start(tmp_path / LEDGER_NAME, Processes(), {"format": 1})
    with evaluator.ledger.scope("part"):
        evaluator.score([PARENT, PARENT], batches)
    evaluator.ledger = Ledger(tmp_path / LEDGER_NAME, Processes(), resumed=True)
    for variants, others, logits, message in (
        ([PARENT], batches, False, "no variant 1"),
        ([PARENT] * 2, make_batches(4), False, "on batch 1"),
        ([PARENT] * 2, make_batches(9), False, "holds 1 images, not 2"),
        ([PARENT] * 2, batches, True, "no logits"),
    ):
        with evaluator.ledger.scope("part"), pytest.raises(SMDError, match=message):
            evaluator.score(variants, others, keep_logits=logits)


class WithAFasterOne(Processes):
    """A process beside another that has done and removed everything whenever this one goes on."""

    def __init__(self, cells):
        super().__init__()
        self.cells = cells

    def gather(self, work):
        mine = work()
        shutil.rmtree(self.cells, ignore_errors=True)
        return [mine, mine]


def test_what_another_process_removes_at_the_end_is_not_looked_for(tmp_path, monkeypatch):
    cells = tmp_path / LEDGER_NAME / CELLS_NAME
    ledger = Ledger(tmp_path / LEDGER_NAME, WithAFasterOne(cells))
    (cells / "part").mkdir(parents=True)
    look = Path.glob

    def between(path, pattern):
        """The folder is there when its reading begins, and gone when it goes on."""
        if not path.exists():
            raise FileNotFoundError(path)
        return look(path, pattern)

    monkeypatch.setattr(Path, "glob", between)
    ledger.end()
    assert not cells.exists() and (tmp_path / LEDGER_NAME / "ended.json").exists()


# ---- Whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    """Without a test split: no report is written, which takes longer than the run."""
    return make_dataset(24, 1), None


@pytest.fixture(scope="module")
def tested(data):
    return data[0], make_dataset(8, 2)


RUN = dict(num_generations=3, sigma=None, calibration_samples=16, population_size=3, elitism=True, save_strategy="no")


def results(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second")
    log = [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in history]
    return weights(folder), (folder / "children.jsonl").read_bytes(), log


def report_of(folder):
    report = json.loads((folder / "gain_report.json").read_text())
    cost = {key: value for key, value in report["cost"].items() if key == "images_forwarded"}
    return report | {"cost": cost, "arguments": None, "all_arguments": None}


@pytest.fixture(scope="module")
def whole(checkpoint, tested, tmp_path_factory):
    """A run that was never stopped; without a test split, it ends in the same weights, children and log."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(checkpoint, folder, tested, **RUN).train()
    return folder


def test_a_run_without_checkpoints_goes_on_from_its_ledger(checkpoint, tested, whole, tmp_path, monkeypatch):
    kills = 0
    for line in (2, 11, 7, 13, 5, 60, 60, 60):
        trainer = make_trainer(checkpoint, tmp_path, tested, **RUN)
        with killed_at(line, monkeypatch, torn=kills % 2 == 0):
            try:
                trainer.train(resume_from_checkpoint=True)
                break
            except Killed:
                kills += 1
                keys = keys_in(tmp_path / LEDGER_NAME / CELLS_NAME)
                assert len(set(keys)) == len(keys)
    assert kills >= 4
    assert results(tmp_path) == results(whole) and report_of(tmp_path) == report_of(whole)
    assert not (tmp_path / LEDGER_NAME / CELLS_NAME).exists() and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("limit", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["rotated", "kept"])
def test_a_run_with_checkpoints_takes_the_last_whole_one(limit, checkpoint, data, whole, tmp_path, monkeypatch):
    kwargs = RUN | dict(save_strategy="steps", save_steps=1, save_total_limit=limit)

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise Killed

    with pytest.raises(Killed):
        make_trainer(checkpoint, tmp_path, data, callbacks=[Stop()], **kwargs).train()
    # Killed in the midst of the next one, which another run had written before.
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"global_')
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-3")
    make_trainer(checkpoint, tmp_path, data, **kwargs).train(resume_from_checkpoint=True)
    assert results(tmp_path) == results(whole)


def test_an_ended_run_can_be_resumed_for_more_generations_but_not_for_fewer(checkpoint, data, whole, tmp_path):
    make_trainer(checkpoint, tmp_path, data, **RUN | {"num_generations": 1}).train()
    trainer = make_trainer(checkpoint, tmp_path, data, **RUN)
    trainer.train(resume_from_checkpoint=True)
    assert weights(tmp_path) == weights(whole)
    assert (tmp_path / "children.jsonl").read_bytes() == (whole / "children.jsonl").read_bytes()
    with pytest.raises(SMDError, match=r"num_generations is 2, but the run .* has finished 3"):
        make_trainer(checkpoint, tmp_path, data, **RUN | {"num_generations": 2}).train(resume_from_checkpoint=True)


@pytest.fixture(scope="module")
def begun(checkpoint, tested, tmp_path_factory):
    """A run that was ended within its second generation."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch, killed_at(3, patch, scope="generation-00001"), pytest.raises(Killed):
        make_trainer(checkpoint, folder, tested, **RUN).train()
    assert len((folder / LEDGER_NAME / FINISHED_NAME).read_text().splitlines()) == 1
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(population_size=4), "population_size was 3 and is 4"),
        (dict(seed=7), "seed was 42 and is 7"),
        (dict(per_device_eval_batch_size=8), "per_device_eval_batch_size was 16 and is 8"),
        (dict(sigma=0.2), "sigma was 0.0 and is 0.2"),
        (
            dict(sigma_schedule="linear"),
            'num_generations was not there and is 3; .*sigma_schedule was "constant" and is "linear"',
        ),
        ("data", "train_dataset holds other images or labels"),
        ("test", "eval_dataset holds other images or labels"),
        ("parent", "the parent has other weights"),
    ],
)
def test_another_run_is_refused_with_the_difference_named(change, message, checkpoint, tested, begun, tmp_path):
    kwargs, data = RUN | change if isinstance(change, dict) else RUN, tested
    data = {"data": (make_dataset(24, 5), data[1]), "test": (data[0], make_dataset(8, 5))}.get(str(change), data)
    if change == "parent":
        checkpoint = tmp_path / "other"
        save_tiny_checkpoint("resnet", checkpoint, seed=5)
    before = {path: path.read_bytes() for path in begun.rglob("*.jsonl")}
    trainer = make_trainer(checkpoint, begun, data, **kwargs)
    with pytest.raises(SMDError, match=message):
        trainer.train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in begun.rglob("*.jsonl")} == before


def test_what_does_not_change_results_may_differ(checkpoint, tested, whole, begun, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    # As a process that torchrun has started again.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    kwargs = dict(spread="data", image_cache_gb=0.0, child_cache_gb=0.0, prefix_replay=False, max_hours=5.0)
    make_trainer(checkpoint, folder, tested, **RUN | kwargs).train()
    assert weights(folder) == weights(whole)
    assert (folder / "children.jsonl").read_bytes() == (whole / "children.jsonl").read_bytes()


def test_without_a_run_to_go_on_with_one_is_begun_and_without_resuming_an_old_one_is_forgotten(
    checkpoint, data, whole, begun, tmp_path
):
    folder = tmp_path / "run"
    make_trainer(checkpoint, folder, data, **RUN).train(resume_from_checkpoint=True)
    assert results(folder) == results(whole)
    shutil.rmtree(folder)
    shutil.copytree(begun, folder)
    trainer = make_trainer(checkpoint, folder, data, **RUN | {"seed": 3, "num_generations": 1})
    trainer.train()
    assert len((folder / LEDGER_NAME / FINISHED_NAME).read_text().splitlines()) == 1
    assert json.loads((folder / LEDGER_NAME / "header.json").read_text())["arguments"]["seed"] == 3


def test_damage_is_told_before_anything_is_scored(checkpoint, tested, begun, tmp_path):
    def resume(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(begun, folder)
        change(folder / LEDGER_NAME)
        make_trainer(checkpoint, folder, tested, **RUN).train(resume_from_checkpoint=True)

    def garbage(ledger):
        [path] = (ledger / CELLS_NAME / "generation-00001").glob("rank-*.jsonl")
        path.write_text("garbage\n" + path.read_text())

    with pytest.raises(SMDError, match=r"Line 1 of '.*rank-00000.jsonl' is not one that a run has written"):
        resume(garbage)
    with pytest.raises(SMDError, match="has lost selected-00001"):
        resume(lambda ledger: (ledger / "selected-00001.jsonl").unlink())
    with pytest.raises(SMDError, match="written by another version"):
        resume(lambda ledger: (ledger / "header.json").write_bytes(to_line({"format": 99})))


def test_a_full_disk_is_told_and_leaves_what_can_be_resumed(checkpoint, data, whole, tmp_path):
    trainer = make_trainer(checkpoint, tmp_path, data, **RUN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The largest file so far is that of cells.
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        with pytest.raises(SMDError, match=r"Nothing more can be written to output_dir .* resume the run"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    make_trainer(checkpoint, tmp_path, data, **RUN).train(resume_from_checkpoint=True)
    assert results(tmp_path) == results(whole)


def test_a_run_that_a_callback_has_stopped_stays_stopped_until_its_results_are_written(
    checkpoint, tested, tmp_path, monkeypatch
):
    kwargs = RUN | dict(
        num_generations=4, sigma=0.01, eval_strategy="steps", eval_steps=1, metric_for_best_model="accuracy",
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, ensemble_size=2, save_children=1,
    )  # fmt: skip

    def make(folder):
        return make_trainer(
            checkpoint, folder, tested, callbacks=[EarlyStoppingCallback(early_stopping_patience=1)], **kwargs
        )

    make(tmp_path / "whole").train()
    made = [len(path.read_text().splitlines()) for path in (tmp_path / "whole").glob("children.jsonl")]
    assert made < [4]
    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr("smd_hf.reports.run_result.collect_artifacts", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            make(folder).train()
    make(folder).train(resume_from_checkpoint=True)
    names = ["model.safetensors", "children.jsonl", "children/0000/delta.safetensors", "ensemble/model.safetensors"]
    names = [name for name in names if (tmp_path / "whole" / name).exists()]
    assert len(names) >= 3
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    states = [json.loads((each / "trainer_state.json").read_text()) for each in (tmp_path / "whole", folder)]
    assert states[0]["stateful_callbacks"] == states[1]["stateful_callbacks"] != {}


@pytest.mark.slow
def test_a_checkpoint_alone_seeds_a_ledger_and_is_refused_to_other_runs(checkpoint, data, whole, tmp_path):
    kwargs = RUN | dict(save_strategy="steps", save_steps=1)
    make_trainer(checkpoint, tmp_path / "first", data, **kwargs | {"num_generations": 2}).train()
    saved = tmp_path / "first" / "checkpoint-2"
    make_trainer(checkpoint, tmp_path / "second", data, **RUN).train(resume_from_checkpoint=str(saved))
    assert weights(tmp_path / "second") == weights(whole)
    # Not needed from here on: the ledger knows it all.
    shutil.rmtree(saved)
    again = make_trainer(checkpoint, tmp_path / "second", data, **RUN)
    again.train(resume_from_checkpoint=True)
    assert weights(tmp_path / "second") == weights(whole) and weights_hash(again.model)
    saved = tmp_path / "first" / "checkpoint-1"
    with pytest.raises(SMDError, match=r"density was null and is 0\.5"):
        other = RUN | dict(decomposition="random", density=0.5)
        make_trainer(checkpoint, tmp_path / "third", data, **other).train(resume_from_checkpoint=str(saved))
    state = json.loads((saved / STATE_NAME).read_text())
    (saved / STATE_NAME).write_text(json.dumps(state | {"weights": "0" * 64}))
    with pytest.raises(SMDError, match="not those that were saved there"):
        make_trainer(checkpoint, tmp_path / "third", data, **RUN).train(resume_from_checkpoint=str(saved))


def test_a_fingerprint_is_of_content(tmp_path):
    dataset = make_dataset(12, 1)
    stored = dataset.to_parquet(str(tmp_path / "data.parquet")) and type(dataset).from_parquet(
        str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache")
    )

    def of(data):
        return data_fingerprint(data, None, "image", "label")

    assert of(stored) == of(dataset) == of(make_dataset(12, 1))
    others = [make_dataset(12, 2), dataset.select(range(11)), dataset.select([1, 0, *range(2, 12)])]
    assert len({of(dataset), *map(of, others)}) == 4
