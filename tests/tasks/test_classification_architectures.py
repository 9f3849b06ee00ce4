"""Every class that `AutoModelForImageClassification` maps, as a tiny classifier of one label, through a whole run and the Hub."""

import pytest
import torch
import transformers

from tests.architectures.configs import all_classes, image_processor, image_size, small_config
from tests.architectures.steps import enliven
from tests.tasks import runs
from tests.tasks.stranger import stranger  # noqa: F401
from tests.tasks.test_multi_label_architectures import WITHOUT_PIPELINE
from tests.test_trainer import make_dataset


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "class_name"), all_classes(), ids=lambda each: each)
def test_a_run_of_each(model_type, class_name, tmp_path, stranger):  # noqa: F811
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(small_config(model_type, class_name)).eval()
    enliven(model, image_size(model_type))
    model.save_pretrained(tmp_path / "parent")
    if (processor := image_processor(model_type)) is not None:
        processor.save_pretrained(tmp_path / "parent")
    data = make_dataset(12, 1), make_dataset(8, 2)
    options = {"recombination": "best", "sigma": 0.1, "elitism": False, "per_device_eval_batch_size": 4}
    trainer = runs.evolve(tmp_path / "parent", tmp_path / "out", data, **options)
    image, names = data[1][0]["image"], trainer.model.config.id2label
    if class_name in WITHOUT_PIPELINE:
        with pytest.raises(AssertionError, match=WITHOUT_PIPELINE[class_name]):
            stranger.predict("image-classification", tmp_path / "parent", image)
        return
    expected = torch.tensor(trainer.result.test.evolved_score.logits[0]).softmax(-1).tolist()
    found = stranger.predict("image-classification", tmp_path / "out", image)
    scores = {each["label"]: each["score"] for each in found}
    assert [scores[names[place]] for place in range(4)] == pytest.approx(expected, abs=1e-4)
