"""`EvolutionCallback` in a plain Trainer of each task."""

import pytest
from transformers import Trainer, TrainingArguments

from smd_hf import EvolutionCallback
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor, load_model_for_new_head
from smd_hf.models.tasks import KINDS
from tests.tasks import runs
from tests.tasks.each import ALL

WITH_FILES = ("warm_start", "refit_head", "ensemble_size")
"""Arguments of whole runs, which a callback has no use for."""


@pytest.mark.parametrize("name", ALL)
def test_a_trainer_evolves_its_model(name, tmp_path):
    task = ALL[name]
    checkpoint, rows = task.save(tmp_path / "parent"), task.rows(14)
    options = {key: value for key, value in task.options.items() if key not in WITH_FILES}
    args = runs.arguments(tmp_path / "evolution", per_device_eval_batch_size=4, elitism=False, **options)
    model, _ = load_model_for_new_head(checkpoint, kind=KINDS[task.tag])
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=rows,
        processing_class=load_image_processor(checkpoint, model=model),
    )
    before = weights_hash(model)
    [generation] = EvolutionCallback(trainer, args, rows).evolve()
    assert len(generation.record()["children"]) == 4 and weights_hash(model) != before
    assert any("evolution_parent" in key for entry in trainer.state.log_history for key in entry)
