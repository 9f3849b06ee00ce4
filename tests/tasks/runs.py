"""Small runs, for tests of tasks."""

from smd_hf import EvolutionArguments, EvolutionTrainer


def arguments(folder, **options):
    """Of a run of one generation of four children, unless the options say otherwise."""
    sizes = {"population_size": 4, "num_generations": 1}
    return EvolutionArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **sizes | options)


def make_trainer(checkpoint, folder, data, **options):
    """`data` are training and test images; options are those of [`arguments`]."""
    train, test = data
    return EvolutionTrainer(str(checkpoint), arguments(folder, **options), train_dataset=train, eval_dataset=test)


def evolve(checkpoint, folder, data, **options):
    """The trainer of a run that is done."""
    trainer = make_trainer(checkpoint, folder, data, **options)
    trainer.train()
    return trainer
