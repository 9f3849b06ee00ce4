"""A model that is measured on a benchmark of the Hub: its repository says so where the Hub looks for it."""

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from tests.tiny import save_tiny_checkpoint

from .cards import front_matter
from .clients import run_client
from .server import HubServer

TOKEN = "hf_" + "T0kenOfTheBench" * 2

CODE = """
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from datasets import DatasetDict, load_dataset
    from huggingface_hub import HfApi
    from smd_hf import EvolutionArguments, EvolutionTrainer
    from smd_hf.hub.upload import push_folder
    from tests.test_trainer import make_dataset

    DatasetDict({"train": make_dataset(40, 1), "test": make_dataset(24, 2)}).push_to_hub("tester/images")
    tasks = b"name: Images" + bytes([10]) + b"tasks: [{id: images, config: default, split: test}]"
    api = HfApi()
    api.upload_file(path_or_fileobj=tasks, path_in_repo="eval.yaml", repo_id="tester/images", repo_type="dataset")
    result["revision"] = api.dataset_info("tester/images").sha
    rows = load_dataset("tester/images")
    for name, test in {"whole": rows["test"], "part": rows["test"].select(range(20))}.items():
        args = EvolutionArguments(
            str(Path(root, name)), population_size=2, num_generations=1, sigma=0.1, use_cpu=True, disable_tqdm=True,
            per_device_eval_batch_size=16, save_strategy="no", report_to="none",
        )
        trainer = EvolutionTrainer(parent, args, train_dataset=rows["train"], eval_dataset=test)
        trainer.train()
        result[name] = trainer.report["evolved"]["accuracy"]
        push_folder(Path(root, name), f"tester/{name}")
    push_folder(Path(root, "whole"), "tester/both")
    result["before"] = api.list_repo_files("tester/both")
    push_folder(Path(root, "part"), "tester/both")
    result["after"] = api.list_repo_files("tester/both")
"""


@pytest.mark.slow
def test_a_result_on_a_whole_benchmark_goes_where_the_hub_reads_it(tmp_path):
    save_tiny_checkpoint("resnet", tmp_path / "parent")
    with HubServer() as hub:
        hub.add_user("tester", TOKEN)
        environment = hub.environment(token=TOKEN)
        found = run_client(CODE, environment, root=str(tmp_path), parent=str(tmp_path / "parent"))
        files = {name: hub.files(f"tester/{name}") for name in ("whole", "part")}
    [entry] = parse_eval_result_entries(yaml.safe_load(files["whole"][".eval_results/smd_hf.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("tester/images", "images", found["revision"])
    assert entry.value == found["whole"]
    assert ".eval_results/smd_hf.yaml" not in files["part"], "a part of the split is no result on the benchmark"
    for name in files:
        metadata = front_matter(files[name]["README.md"].decode())
        assert metadata["datasets"] == ["tester/images"], "load_dataset got the images from there"
        [result] = metadata["model-index"][0]["results"]
        assert result["dataset"] == {
            "name": "tester/images", "type": "tester/images", "config": "default", "split": "test"
        }  # fmt: skip
    assert ".eval_results/smd_hf.yaml" in found["before"]
    assert ".eval_results/smd_hf.yaml" not in found["after"], "the entry of an earlier model has to go"
