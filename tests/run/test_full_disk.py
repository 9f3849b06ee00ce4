"""A disk that takes no more, in the midst of a run: an error that says so, and a run that can be resumed."""

import os
import resource

import pytest
from transformers import TrainerCallback

from smd_hf import SMDError
from smd_hf.files import explain_full_disk
from tests.distributed.worker import make_trainer

RUN = dict(kind="resnet", population_size=6, recombination="best", num_generations=3, elitism=False)


class Full(TrainerCallback):
    """From the end of a generation on, no file may grow beyond so many bytes."""

    def __init__(self, generation, size):
        self.generation = generation
        self.size = size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.generation:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size(), hard))


def error_of(work):
    """The error that ends some work, done by a process of its own, whose limits are nobody else's."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(process, 0)
    return text


def train(folder, *callbacks, resume=None, **more):
    trainer = make_trainer(folder, "data", **RUN | more)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return (folder / "model.safetensors").read_bytes()


def test_in_the_midst_of_a_checkpoint(whole, tmp_path):
    saving = dict(save_strategy="steps", save_steps=1)
    error = error_of(lambda: train(tmp_path, Full(2, lambda: len(whole) // 2), **saving))
    assert (
        error.startswith("SMDError: Nothing more can be written to output_dir")
        and "free some space, then resume the run" in error
    )
    assert (tmp_path / "checkpoint-1" / "model.safetensors").stat().st_size >= len(whole)
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert not list(tmp_path.rglob(".saving-*"))
    train(tmp_path, resume=True, **saving)
    assert (tmp_path / "model.safetensors").read_bytes() == whole


def test_in_the_midst_of_a_line_of_the_ledger(whole, tmp_path):
    ledger = tmp_path / "ledger"
    lines = ledger / "finished.jsonl"
    # The line of the second generation does not fit any more.
    error = error_of(lambda: train(tmp_path, Full(2, lambda: lines.stat().st_size + 100), save_strategy="no"))
    assert error.startswith("SMDError: ") and "File too large" in error and "free some space" in error
    assert lines.read_bytes().count(b"\n") == 1 and not lines.read_bytes().endswith(b"\n")
    resumed = train(tmp_path, resume=True, save_strategy="no")
    assert (tmp_path / "model.safetensors").read_bytes() == whole
    assert len(resumed.run.generations) == 3


def test_a_device_without_room(tmp_path):
    (tmp_path / "children.jsonl").symlink_to("/dev/full")
    with pytest.raises(SMDError, match=r"Nothing more can be written to output_dir .* \(No space left on device\)"):
        train(tmp_path)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError("of no number"), ValueError("other")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, explain_full_disk("out"):
        raise error
    assert raised.value is error
