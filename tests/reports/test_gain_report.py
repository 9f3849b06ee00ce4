"""The gain report: its numbers, its form as strict JSON, and the table in the terminal."""

import json
import math
from enum import Enum
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from smd_hf.metrics.optimism import expected_optimism
from smd_hf.metrics.statistics import Scores, compare
from smd_hf.reports.gain_report import format_comparison, format_table, gain_report, package_versions, write_report


def logits_and_labels(n=300, classes=4):
    rng = np.random.default_rng(0)
    truth = 2 * rng.normal(size=(n, classes))
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    parent, evolved, ensemble = (
        (truth + noise * rng.normal(size=truth.shape)).astype(np.float32) for noise in (2, 0.3, 0.1)
    )
    return parent, evolved, ensemble, labels


def make(**changes):
    parent, evolved, _, labels = logits_and_labels()
    details = {
        "arguments": {"population_size": 24, "hub_token": "hf_secret"},
        "method": {"decomposition": "partition", "seed": 42, "sigma": 0.3},
        "cost": {"images_forwarded": 72_000, "parent_passes": 26.0, "seconds": 12.5},
        "data": {"fitness": {"images": 2400}, "selection": {"images": 600}, "test": {"images": 300}},
    }
    return gain_report(parent, evolved, labels, **{**details, **changes})


def test_the_numbers_are_those_of_statistics():
    parent, evolved, _, labels = logits_and_labels()
    report, comparison = make(), compare(parent, evolved, labels)
    for name, logits in (("parent", parent), ("evolved", evolved)):
        scores = Scores.from_logits(logits, labels)
        assert report[name] == {
            "n_test": 300,
            "accuracy": scores.accuracy,
            "nll": scores.nll,
            "calibration_error": scores.calibration_error,
        }
    for key in ("accuracy", "nll", "calibration_error"):
        expected = getattr(comparison, key)
        assert report["difference"][key] == {"estimate": expected.estimate, "interval": list(expected.interval)}
    assert report["difference"]["mcnemar"] == {
        "only_parent_correct": comparison.only_baseline_correct,
        "only_evolved_correct": comparison.only_candidate_correct,
        "p_value": comparison.p_value,
    }
    assert report["significant"] is True and report["verdict"] == comparison.verdict
    assert (report["decomposition"], report["seed"], report["sigma"]) == ("partition", 42, 0.3)
    assert report["cost"] == {"images_forwarded": 72_000, "parent_passes": 26.0, "seconds": 12.5}
    assert report["data"]["selection"] == {"images": 600}
    assert report["versions"] == package_versions()
    assert "ensemble" not in report and "selection" not in report


def test_the_ensemble_is_compared_with_the_parent():
    parent, _, ensemble, labels = logits_and_labels()
    report = make(ensemble_logits=ensemble)
    expected = compare(parent, ensemble, labels, names=("parent", "ensemble"))
    assert report["ensemble"]["accuracy"] == expected.candidate.accuracy
    assert report["ensemble_difference"]["mcnemar"]["only_ensemble_correct"] == expected.only_candidate_correct
    assert report["ensemble_difference"]["verdict"] == expected.verdict
    assert "ensemble is more accurate than parent" in expected.verdict


def test_selection_gives_the_optimism():
    report = make(candidates={"n_candidates": 24, "n_images": 600, "discordance": 0.02, "criterion": "nll"})
    assert report["selection"] == {
        "n_candidates": 24,
        "n_images": 600,
        "discordance": 0.02,
        "criterion": "nll",
        "expected_optimism": expected_optimism(24, 600, 0.5, discordance=0.02),
    }
    guessed = make(candidates={"n_candidates": 24, "n_images": 600, "accuracy": 0.9, "keeps_parent": True})
    assert guessed["selection"]["expected_optimism"] == expected_optimism(24, 600, 0.9, keeps_parent=True)
    from_test = make(candidates={"n_candidates": 24, "n_images": 600})
    expected = expected_optimism(24, 600, from_test["parent"]["accuracy"])
    assert from_test["selection"]["expected_optimism"] == expected


def test_the_file_is_strict_json_and_equals_the_report(tmp_path):
    class Schedule(Enum):
        COSINE = "cosine"

    report = make(
        arguments={
            "rate": np.float32(0.5),
            "count": np.int64(3),
            "nothing": math.nan,
            "endless": np.array([1.0, np.inf]),
            "schedule": Schedule.COSINE,
            "folder": Path("out"),
            "names": {"b", "a"},
            "pair": (1, True),
            "hub_token": "hf_secret",
        }
    )
    path = write_report(report, tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    assert path.name == "gain_report.json" and [entry.name for entry in path.parent.iterdir()] == [path.name]

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == report
    assert text == json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert report["arguments"] == {
        "rate": 0.5,
        "count": 3,
        "nothing": None,
        "endless": [1.0, None],
        "schedule": "cosine",
        "folder": "out",
        "names": ["a", "b"],
        "pair": [1, True],
        "hub_token": "<hidden>",
    }
    assert "hf_secret" not in text
    assert write_report(make(), path.parent).read_bytes() == write_report(make(), path.parent).read_bytes()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_report(make(), tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(make(method={"decomposition": "dense"}), tmp_path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_impossible_labels_of_a_majority_vote_become_null():
    parent, *_ = logits_and_labels()
    votes = np.where(np.arange(4) == parent.argmax(axis=1)[:, None], 0.0, -np.inf)
    report = make(ensemble_logits=votes)
    assert report["ensemble"]["nll"] is None
    assert report["ensemble_difference"]["nll"] == {"estimate": None, "interval": [None, None]}
    json.dumps(report, allow_nan=False)
    row = next(line for line in reversed(format_table(report).splitlines()) if line.startswith("NLL"))
    assert row.split()[-5:] == ["-", "-", "-", "to", "-"]


def test_versions_are_those_installed():
    versions = package_versions()
    assert set(versions) == {
        *("python", "torch", "transformers", "timm", "accelerate", "datasets", "huggingface_hub", "safetensors"),
        *("numpy", "smd_hf"),
    }
    assert versions["transformers"] == metadata.version("transformers") and versions["numpy"] == np.__version__
    assert make()["versions"] == versions


def test_the_table_shows_the_numbers_in_aligned_columns():
    report = make(ensemble_logits=logits_and_labels()[2])
    lines = format_table(report).splitlines()
    assert lines[0].split() == ["parent", "evolved", "difference", "95", "%", "interval"]
    assert len({len(line) for line in lines[:5]}) == 1
    low, high = report["difference"]["accuracy"]["interval"]
    numbers = [f"{100 * report[name]['accuracy']:.2f}" for name in ("parent", "evolved")]
    numbers.append(f"{100 * report['difference']['accuracy']['estimate']:+.2f}")
    assert lines[2].split() == ["accuracy", "(%)", *numbers, f"{100 * low:+.2f}", "to", f"{100 * high:+.2f}"]
    assert f"{report['parent']['nll']:.4f}" in lines[3]
    assert lines[5].startswith(
        f"300 test images; only parent right: {report['difference']['mcnemar']['only_parent_correct']}"
    )
    assert report["verdict"] in lines and report["ensemble_difference"]["verdict"] in lines


def test_any_comparison_has_the_same_table():
    parent, evolved, _, labels = logits_and_labels()
    report = make()
    own_names = format_comparison(compare(parent, evolved, labels))
    assert own_names == format_table(report)
    other = format_comparison(compare(parent, evolved, labels, names=("resnet", "vit"), alpha=0.01))
    assert other.splitlines()[0].split() == ["resnet", "vit", "difference", "99", "%", "interval"]
    assert "only vit right" in other
