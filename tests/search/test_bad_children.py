"""Children whose logits are not finite: they lose, whatever becomes of the scored children afterwards."""

import pytest
import torch

from smd_hf import EvolutionTrainer
from smd_hf.search.build import RECOMBINATIONS
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import tiny_model, tiny_processor


def overflow(layer, inputs, outputs):
    """NaN where the first bias is above zero, which it is for some children."""
    return torch.where(layer.bias[0] > 0, torch.nan, outputs)


@pytest.mark.parametrize("recombination", RECOMBINATIONS)
def test_some_children_that_are_not_finite_lose(recombination, tmp_path):
    model = tiny_model("vit")
    with torch.no_grad():
        model.classifier.bias[0] = -1e-9
    model.classifier.register_forward_hook(overflow)
    args = plain_arguments(
        str(tmp_path),
        population_size=8,
        decomposition="dense",
        mutable_parameters=["head"],
        sigma=0.2,
        recombination=recombination,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = EvolutionTrainer(
        model,
        args,
        train_dataset=make_dataset(40, 1),
        eval_dataset=make_dataset(8, 2),
        processing_class=tiny_processor(),
    )
    trainer.train()
    [record] = trainer.run.generations
    failed = [child["index"] for child in record["children"] if child["fitness"] is None]
    assert 0 < len(failed) < 8
    assert not set(failed) & {index for index, coefficient in record["parts"] if coefficient}
    assert trainer.report["evolved"]["nll"] is not None and trainer.report["generations"][0]["failed_children"] == len(
        failed
    )
