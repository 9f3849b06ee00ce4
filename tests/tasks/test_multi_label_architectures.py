"""Every class that `AutoModelForImageClassification` maps, as a tiny classifier of several labels, through a whole run and the Hub."""

import pytest
import torch
import transformers

from tests.architectures.configs import all_classes, image_processor, image_size, small_config
from tests.architectures.steps import enliven
from tests.tasks import runs
from tests.tasks.stranger import stranger  # noqa: F401
from tests.tasks.tagged import NAMES, make_rows

WITHOUT_PIPELINE = {"PPLCNetForImageClassification": "KeyError: 'logits'"}
"""Classes that transformers' pipeline cannot run, evolved or not, and a part of what it says."""


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "class_name"), all_classes(), ids=lambda each: each)
def test_a_run_of_each(model_type, class_name, tmp_path, stranger):  # noqa: F811
    torch.manual_seed(0)
    config = small_config(model_type, class_name)
    config.num_labels, config.problem_type = len(NAMES), "multi_label_classification"
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: place for place, name in config.id2label.items()}
    if model_type == "timm_wrapper":
        config.label_names = NAMES
    model = getattr(transformers, class_name)(config).eval()
    enliven(model, image_size(model_type))
    model.save_pretrained(tmp_path / "parent")
    if (processor := image_processor(model_type)) is not None:
        processor.save_pretrained(tmp_path / "parent")
    data = make_rows(10), make_rows(6, seed=1)
    options = {"fitness": "f1_macro", "sigma": 0.1, "elitism": False, "ensemble_size": 2}
    trainer = runs.evolve(tmp_path / "parent", tmp_path / "out", data, per_device_eval_batch_size=4, **options)
    assert trainer.report["task"] == "image-classification" and "f1_macro" in trainer.report["ensemble_difference"]
    image = data[1][0]["image"]
    expected = trainer.result.test.evolved_score.logits[0]
    if class_name in WITHOUT_PIPELINE:
        with pytest.raises(AssertionError, match=WITHOUT_PIPELINE[class_name]):
            stranger.predict("image-classification", tmp_path / "parent", image)
        return
    for folder, logits in ((tmp_path / "out", expected), (tmp_path / "out" / "ensemble", None)):
        found = {each["label"]: each["score"] for each in stranger.predict("image-classification", folder, image)}
        if logits is not None:
            assert [found[name] for name in NAMES] == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-4)
        assert found.keys() == set(NAMES)
