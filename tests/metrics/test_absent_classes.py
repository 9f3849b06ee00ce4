"""Classes without an image: counted, and ruled out, in the report, on the card and on the terminal."""

import json

import numpy as np
import pytest

from smd_hf.cli.main import main
from smd_hf.metrics.absent_classes import absent_lines, classes_at_hand, compare_restricted, predicted_elsewhere
from smd_hf.metrics.statistics import Scores, compare
from smd_hf.reports.gain_report import gain_report
from tests.test_trainer import make_dataset, make_trainer
from tests.tiny import label_names, save_tiny_checkpoint

FACTS = {"arguments": {}, "method": {}, "cost": {}, "data": {}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of seven classes."""
    return save_tiny_checkpoint("resnet", tmp_path_factory.mktemp("models") / "resnet", num_labels=7)


def logits_and_labels(n=400):
    """Ten classes, labels of the four even ones below eight; what is predicted otherwise is often of an odd one."""
    rng = np.random.default_rng(3)
    labels = 2 * rng.integers(4, size=n)
    logits = rng.normal(size=(n, 10)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return logits, labels


def without(logits, classes):
    """The same model, which never predicts these classes."""
    changed = logits.copy()
    changed[:, classes] -= 20
    return changed


def test_a_gain_from_the_class_prior_alone_is_none_where_predictions_are_restricted():
    parent, labels = logits_and_labels()
    evolved = without(parent, [1, 3, 5, 7, 9])
    report = gain_report(parent, evolved, labels, present=[8], **FACTS)
    absent = report["absent_classes"]
    assert (absent["classes"], absent["with_images"], absent["without_images"]) == (10, 5, 5)
    assert absent["predicted"]["parent"] == np.mean(parent.argmax(1) % 2 == 1) > 0.2
    assert absent["predicted"]["evolved"] == 0
    assert report["significant"] and report["difference"]["accuracy"]["estimate"] > 0.1
    difference = absent["restricted"]["difference"]
    assert difference["accuracy"] == {"estimate": 0.0, "interval": [0.0, 0.0]}
    assert abs(difference["nll"]["estimate"]) < 1e-6 and not absent["restricted"]["significant"]
    assert json.loads(json.dumps(report)) == report


def test_a_gain_from_the_features_is_left():
    parent, labels = logits_and_labels()
    evolved = parent.copy()
    evolved[np.arange(len(labels)), labels] += 1
    absent = gain_report(parent, evolved, labels, present=[], **FACTS)["absent_classes"]
    kept = [0, 2, 4, 6]
    expected = compare(parent[:, kept], evolved[:, kept], labels // 2)
    assert absent["restricted"]["difference"]["accuracy"]["estimate"] == expected.accuracy.estimate > 0.05
    assert absent["restricted"]["difference"]["nll"]["interval"] == list(expected.nll.interval)
    assert absent["restricted"]["evolved"]["accuracy"] == expected.candidate.accuracy
    assert absent["restricted"]["significant"]


def test_nothing_is_said_where_every_class_has_an_image():
    parent, labels = logits_and_labels()
    assert "absent_classes" not in gain_report(parent, parent, labels, present=range(10), **FACTS)
    assert "absent_classes" not in gain_report(parent, parent, labels, **FACTS)
    assert absent_lines(None) == []


def test_parts():
    parent, labels = logits_and_labels()
    assert classes_at_hand(labels, [9, 9]).tolist() == [0, 2, 4, 6, 9]
    assert predicted_elsewhere(parent, np.arange(10)) == 0
    assert compare_restricted(parent, parent, np.zeros(400, dtype=int), np.array([0])) is None


def test_a_run_says_so_in_report_card_and_terminal(checkpoint, tmp_path):
    data = make_dataset(60, 5, label_names(7)[1:4]), make_dataset(40, 6, label_names(7)[1:4])
    trainer = make_trainer(checkpoint, tmp_path, data, elitism=False, fitness_samples_per_generation=30)
    trainer.train()
    absent = json.loads((tmp_path / "gain_report.json").read_text())["absent_classes"]
    assert (absent["classes"], absent["with_images"], absent["without_images"]) == (7, 3, 4)
    logits, labels = trainer.result.parent_score.logits, trainer.images.test.labels
    assert sorted(set(labels.tolist())) == [1, 2, 3]
    scores = Scores.from_logits(logits[:, 1:4], labels - 1)
    assert absent["restricted"]["parent"]["accuracy"] == scores.accuracy
    assert absent["restricted"]["parent"]["nll"] == scores.nll
    assert absent["predicted"]["parent"] == np.mean(~np.isin(logits.argmax(1), [1, 2, 3]))
    card = (tmp_path / "README.md").read_text()
    section = card[card.index("## Classes without images") : card.index("## Use")]
    assert "4 have no image" in section and f"{100 * scores.accuracy:.2f} |" in section
    lines = "\n".join(absent_lines(absent))
    assert (
        "4 of the model's 7 classes have no image" in lines
        and f"accuracy (%) {100 * scores.accuracy:.2f} before" in lines
    )


def test_cards_of_ensemble_and_deltas_say_so_of_themselves(checkpoint, tmp_path):
    data = make_dataset(60, 5, label_names(7)[1:4]), make_dataset(40, 6, label_names(7)[1:4])
    trainer = make_trainer(checkpoint, tmp_path, data, elitism=False, ensemble_size=2, save_children=2)
    trainer.train()
    report = trainer.report
    entries = {"ensemble": report["ensemble_absent_classes"]}
    entries |= {"child": report["deltas"]["0000"]["absent_classes"]}
    for (name, absent), folder in zip(entries.items(), ("ensemble", "children")):
        assert (absent["classes"], absent["with_images"], absent["without_images"]) == (7, 3, 4)
        assert absent["restricted"]["parent"] == report["absent_classes"]["restricted"]["parent"]
        card = (tmp_path / folder / "README.md").read_text()
        section = card[card.index("## Classes without images") : card.index("## Use")]
        own = absent["restricted"][name]["accuracy"]
        assert (
            f"| accuracy (%) | {100 * absent['restricted']['parent']['accuracy']:.2f} | {100 * own:.2f} |" in section
        )
        assert f"and this model on {100 * absent['predicted'][name]:.2f} %" in section


def test_training_images_count_also_where_a_collator_of_the_users_own_reads_them(checkpoint, tmp_path):
    train, test = make_dataset(60, 5, label_names(7)[:4]), make_dataset(40, 6, label_names(7)[:4]).select(range(2))
    given = make_trainer(checkpoint, tmp_path / "one", (train, test))
    given.train()
    rows = [
        [{"pixel_values": each["pixel_values"][0], "labels": int(each["labels"][0])} for each in batches]
        for batches in ([given.data_collator([row]) for row in data] for data in (train, test))
    ]
    other = make_trainer(checkpoint, tmp_path / "other", rows)
    other.train()
    assert given.report["absent_classes"] == other.report["absent_classes"]
    assert given.report["absent_classes"]["with_images"] == 4


def test_a_run_with_an_image_of_every_class_says_nothing(checkpoint, tmp_path):
    data = make_dataset(70, 5, label_names(7)), make_dataset(40, 6, label_names(7))
    trainer = make_trainer(checkpoint, tmp_path, data)
    trainer.train()
    assert "absent_classes" not in trainer.report
    assert "Classes without images" not in (tmp_path / "README.md").read_text()


def test_evaluate(checkpoint, tmp_path, capfd):
    make_dataset(40, 6, label_names(7)[1:4]).to_parquet(str(tmp_path / "test.parquet"))
    small = save_tiny_checkpoint("resnet", tmp_path / "small", num_labels=4)
    output = tmp_path / "scores.json"
    argv = ["evaluate", "--model_name_or_path", str(checkpoint), "--validation_file", str(tmp_path / "test.parquet")]
    argv += ["--output_file", str(output)]
    assert main(argv) == 0
    one = json.loads(output.read_text())["absent_classes"]
    [entry] = one["models"].values()
    assert (one["with_images"], entry["classes"], entry["without_images"]) == (3, 7, 4)
    assert entry["restricted"]["accuracy"] >= json.loads(output.read_text())["accuracy"]
    assert "4 of 7 classes have no image here" in capfd.readouterr().out
    assert main([*argv, "--against", str(small)]) == 0
    both = json.loads(output.read_text())["absent_classes"]
    big, less = both["models"]["resnet"], both["models"]["small"]
    assert big == entry and less["without_images"] == 1
    change = big["restricted"]["accuracy"] - less["restricted"]["accuracy"]
    assert both["comparison"]["accuracy"]["estimate"] == pytest.approx(change)
    assert "Restricted to these, " in capfd.readouterr().out
