"""A batch that does not fit into memory, for real: in a process that may have so much and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smd_hf import SMDError
from smd_hf.parallel.processes import Processes
from smd_hf.run.batch_size import is_out_of_memory, largest_fitting

# A ViT of 1025 tokens, whose eager attention takes 8 MB an image for each of several tensors.
SCRIPT = """
import json, re, resource, sys
from pathlib import Path
import torch
from transformers import ViTConfig, ViTForImageClassification
from smd_hf import EvolutionArguments, EvolutionTrainer, SMDError
from tests import figures
from tests.test_trainer import make_dataset
from tests.tiny import label_names, tiny_processor

from tests.plain import plain_arguments
folder = Path(sys.argv[1])
torch.set_num_threads(1)
names = dict(enumerate(label_names(4)))

def trainer(name, **kwargs):
    torch.manual_seed(0)
    sizes = dict(image_size=64, patch_size=2, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = ViTConfig(**sizes, id2label=names, label2id={label: i for i, label in names.items()}, attn_implementation="eager")
    args = dict(population_size=2, sigma=0.3, recombination="best", elitism=False, use_cpu=True, disable_tqdm=True)
    return EvolutionTrainer(
        ViTForImageClassification(config).eval(),
        plain_arguments(str(folder / name), **args | kwargs),
        train_dataset=make_dataset(40, 1),
        eval_dataset=make_dataset(8, 2),
        processing_class=tiny_processor(64),
    )

trainer("warm", per_device_eval_batch_size=1).train()
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
# 16 images take about 270 MB, 32 twice that: far from both.
resource.setrlimit(resource.RLIMIT_AS, (used + 370 * 2**20, resource.RLIM_INFINITY))
result = {}
try:
    trainer("asked", per_device_eval_batch_size=32).train()
except SMDError as error:
    result["error"] = str(error)
found = trainer("found", per_device_eval_batch_size=32, auto_find_batch_size=True)
found.train()
result["search"] = found.report["batch_size_search"]
result["size"] = found.report["batch_size"]
given = trainer("given", per_device_eval_batch_size=result["size"])
given.train()
files = [(folder / name / "model.safetensors").read_bytes() for name in ("found", "given")]
result["same"] = files[0] == files[1]
again = trainer("found", per_device_eval_batch_size=max(1, result["size"] // 2), auto_find_batch_size=True)
try:
    again.train(resume_from_checkpoint=True)
except SMDError as error:
    result["refused"] = str(error)
json.dump(result, (folder / "result.json").open("w"))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((folder / "result.json").read_text()) | {"log": process.stderr}


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_an_error_that_names_it(result):
    assert "not enough memory to score 32 images at once" in result["error"]
    assert "auto_find_batch_size" in result["error"] and "\n" not in result["error"]


@pytest.mark.slow
def test_the_size_is_halved_until_it_fits_and_then_as_if_it_had_been_given(result):
    assert result["search"] == {"asked": 32, "found": result["size"]}
    assert result["size"] in (2, 4, 8, 16) and result["same"]
    assert f"of 32 images at once, {result['size']} fit into memory" in result["log"]


@pytest.mark.slow
def test_a_run_that_would_go_on_with_another_size_is_refused(result):
    size = result["size"]
    assert f"per_device_eval_batch_size was {size} and is {size // 2}" in result["refused"]


@pytest.mark.parametrize(
    "fits, found",
    [(100, 96), (96, 96), (95, 48), (7, 6), *(pytest.param(n, n, marks=pytest.mark.slow) for n in (3, 1))],
)
def test_the_largest_that_fits(fits, found):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert largest_fitting(96, attempt, Processes()) == found
    assert tried == [96 >> halvings for halvings in range(len(tried))]


def test_not_even_one_image():
    def attempt(size):
        raise MemoryError

    with pytest.raises(SMDError, match="not even one image"):
        largest_fitting(4, attempt, Processes())


def test_other_errors_are_not_taken_for_it():
    def attempt(size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_fitting(4, attempt, Processes())
    assert not is_out_of_memory(ValueError("out of memory."))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    told = RuntimeError("Evaluation hit an error")
    assert not is_out_of_memory(told)
    told.__cause__ = torch.OutOfMemoryError("HIP out of memory")
    assert is_out_of_memory(told)


class OfSeveral(Processes):
    """A process among others, each of which has found a size."""

    def gather(self, work):
        return [16, work(), 4]


def test_of_several_processes_all_take_the_smallest():
    assert largest_fitting(32, lambda size: None, OfSeveral()) == 4
