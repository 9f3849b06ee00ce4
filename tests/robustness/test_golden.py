"""What `golden.py` hashes, and what it leaves out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .golden import differences, hash_numbers, hash_tensors, numbers

GOLDEN = Path(__file__).with_name("golden.py")


def test_numbers_are_those_that_a_run_finds():
    report = {
        "evolved": {"accuracy": 0.5, "nll": None, "verdict": "significant gain"},
        "cost": {"seconds": 1.5, "parent_passes": 2.5, "images_forwarded": 30},
        "members": [{"votes": 2}, {"votes": 1}],
        "significant": True,
        "versions": {"numpy": 2},
        "arguments": {"sigma": 0.3},
        "crc": 17,
    }
    assert dict(numbers(report)) == {
        ".evolved.accuracy": 0.5,
        ".evolved.nll": None,
        ".cost.images_forwarded": 30,
        ".members[0].votes": 2,
        ".members[1].votes": 1,
        ".significant": True,
    }


def test_lines_are_told_apart_and_a_file_without_numbers_is_an_error(tmp_path):
    path = tmp_path / "children.jsonl"
    path.write_text('{"nll": 1.0}\n{"nll": 2.0}\n')
    first = hash_numbers(path)
    path.write_text('{"nll": 2.0}\n{"nll": 1.0}\n')
    assert hash_numbers(path) != first
    path.write_text('{"seconds": 1.0}\n')
    with pytest.raises(ValueError, match="no number"):
        hash_numbers(path)


def test_a_bit_a_name_a_shape_and_a_dtype_count_and_metadata_does_not(tmp_path):
    def hashed(tensors, **metadata):
        save_file(tensors, tmp_path / "model.safetensors", metadata)
        return hash_tensors(tmp_path / "model.safetensors")

    tensor = torch.arange(6, dtype=torch.float32)
    first = hashed({"a": tensor})
    assert hashed({"a": tensor}, format="pt") == first
    changed = tensor.clone()
    changed.view(torch.int32)[3] ^= 1
    others = [{"a": changed}, {"b": tensor}, {"a": tensor.reshape(2, 3)}, {"a": tensor.view(torch.int32)}]
    assert len({first, *map(hashed, others)}) == 5


def test_what_is_missing_or_new_differs():
    assert differences({"weights": "1", "report": "2"}, {"weights": "1", "front.json": "3"}) == [
        "front.json",
        "report",
    ]


@pytest.mark.slow
def test_a_recording_is_found_again_and_a_difference_is_named(tmp_path):
    def golden(*arguments):
        command = [sys.executable, str(GOLDEN), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=580)
        return done.returncode, done.stdout + done.stderr

    path = tmp_path / "golden.json"
    code, text = golden("record", str(path), "--only", "dense_best", "steps", "resumed")
    assert code == 0, text[-3000:]
    code, text = golden("check", str(path))
    assert code == 0 and "3 runs were checked" in text and "no hashes differ" in text, text[-3000:]
    recorded = json.loads(path.read_text())
    recorded["dense_best"]["weights"] = "0" * 64
    path.write_text(json.dumps(recorded))
    code, text = golden("check", str(path), "--only", "dense_best")
    assert code == 1 and "DIFFERS: dense_best, weights" in text, text[-3000:]
    code, text = golden("check", str(path), "--only", "dense")
    assert code == 1 and "No run is called dense." in text
