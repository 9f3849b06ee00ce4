"""Small runs, for tests of tasks."""

import pytest

from smd_hf import EvolutionTrainer
from tests.plain import PLAIN_OPTIONS, plain_arguments


def arguments(folder, **options):
    """Of a run of one generation of four children, unless the options say otherwise."""
    sizes = {"population_size": 4, "num_generations": 1}
    return plain_arguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **sizes | options)


def make_trainer(checkpoint, folder, data, **options):
    """`data` are training and test images; options are those of [`arguments`]."""
    train, test = data
    return EvolutionTrainer(str(checkpoint), arguments(folder, **options), train_dataset=train, eval_dataset=test)


def evolve(checkpoint, folder, data, **options):
    """The trainer of a run that is done."""
    trainer = make_trainer(checkpoint, folder, data, **options)
    trainer.train()
    return trainer


def command(checkpoint, data, folder):
    """`smd-hf evolve` of a small run, what `smd-hf evaluate` takes of it, and the folder of the result."""
    for name, rows in zip(("train", "test"), data):
        rows.to_parquet(folder / f"{name}.parquet")
    test = ["--validation_file", str(folder / "test.parquet"), "--disable_tqdm", "True"]
    out = str(folder / "out")
    argv = ["evolve", "--model_name_or_path", str(checkpoint), "--train_file", str(folder / "train.parquet"), *test]
    return [*argv, *PLAIN_OPTIONS, "--population_size", "4", "--report_to", "none", "--output_dir", out], test, out


class Stop(Exception):
    """Ends a run before it is done."""


def stop_in_its_midst(trainer, checks=40):
    """Trains until a process has looked for a signal so many times."""
    check, left = trainer.processes.stop.check, iter(range(checks))

    def counted():
        if next(left, None) is None:
            raise Stop
        check()

    trainer.processes.stop.check = counted
    with pytest.raises(Stop):
        trainer.train()
