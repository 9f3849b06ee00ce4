"""Every class of transformers' zero-shot pipeline with two towers, as a tiny random model, through a whole run and the Hub."""

import pytest
import torch

from tests.tasks import runs
from tests.tasks.stranger import stranger  # noqa: F401
from tests.tasks.two_towers import NAMES, SETTINGS, make_rows, save_two_towers


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_run_of_each(architecture, tmp_path, stranger):  # noqa: F811
    texts = {"candidate_labels": NAMES, "hypothesis_template": "a {} photo"}
    save_two_towers(tmp_path / "parent", architecture)
    data = make_rows(9), make_rows(6, seed=1)
    ensemble = {} if "Siglip" in architecture else {"ensemble_size": 2}
    trainer = runs.evolve(
        tmp_path / "parent", tmp_path / "out", data, recombination="best", sigma=0.1, elitism=False,
        per_device_eval_batch_size=4, **texts, **ensemble,
    )  # fmt: skip
    assert trainer.report["task"] == "zero-shot-image-classification"
    logits = torch.tensor(trainer.result.test.evolved_score.logits[0])
    wanted = logits.sigmoid() if "Siglip" in architecture else logits.softmax(-1)
    image = data[1][0]["image"]
    found = stranger.predict("zero-shot-image-classification", tmp_path / "out", image, **texts)
    scores = {each["label"]: each["score"] for each in found}
    assert [scores[name] for name in NAMES] == pytest.approx(wanted.tolist(), abs=1e-4)
    if ensemble:
        found = stranger.predict("zero-shot-image-classification", tmp_path / "out" / "ensemble", image, **texts)
        assert sum(each["score"] for each in found) == pytest.approx(1) and len(found) == 3
