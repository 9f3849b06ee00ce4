"""
What a run gives to the Hub, and what others get from there: evolved, pushed and loaded by the real libraries, each in a
process of its own.

Parents: "vit" is on the Hub and given by name; "custom" has Python files and is given as a model in memory; "timm" is a
folder.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.tiny import save_tiny_checkpoint

from .cards import front_matter
from .clients import request, run_client
from .server import HubServer

RUNS = ("vit", "custom", "timm")
TOKEN = "hf_" + "T0kenOfTheRun" * 3

EVOLVE = """
    import contextlib, io, logging, os, sys
    from pathlib import Path

    import torch
    torch.set_num_threads(1)

    import smd_hf
    from smd_hf import EvolutionArguments, EvolutionTrainer
    from tests.test_trainer import make_dataset
    from tests.tiny import tiny_pixels, tiny_processor

    def make_trainer(model, name, train=make_dataset(40, 1), test=make_dataset(24, 2), processor=None, **arguments):
        chosen = {
            "population_size": 4, "num_generations": 2, "sigma": 0.1, "elitism": False, "use_cpu": True,
            "disable_tqdm": True, "per_device_eval_batch_size": 16, "save_strategy": "no",
        }
        args = EvolutionArguments(str(Path(root, name)), **(chosen | arguments))
        return EvolutionTrainer(model, args, train_dataset=train, eval_dataset=test, processing_class=processor)

    @torch.no_grad()
    def logits(model):
        return model.eval()(tiny_pixels()).logits.numpy().tobytes().hex()

    def measure(folder):
        kinds = {"child": "", "ensemble": "ensemble", "delta": "children/0001"}
        return {
            kind: logits(smd_hf.load(Path(folder, place), trust_remote_code=True)) for kind, place in kinds.items()
        }
"""

PUSH = (
    EVOLVE
    + """
    beside = {"ensemble_size": 3, "push_ensemble": True, "save_children": 3, "push_children": 2}

    # Pushed by itself at the end of the run
    trainer = make_trainer("tester/parent", "vit", push_to_hub=True, hub_model_id="tester/vit", hub_token=token, **beside)
    trainer.train()
    result["vit"] = measure(trainer.args.output_dir)
    result["urls"] = trainer.pushed

    # Pushed by hand, private; in memory, so that the deltas' parent is but a folder of this machine
    os.environ["HF_TOKEN"] = token
    model = smd_hf.load_model(folders["custom"], trust_remote_code=True)
    trainer = make_trainer(model, "custom", processor=tiny_processor(), hub_model_id="custom", hub_private_repo=True, **beside)
    trainer.train()
    result["custom"] = measure(trainer.args.output_dir)
    result["commit"] = trainer.push_to_hub("By hand", tags="extra", language="en").commit_message
    result["again"] = trainer.push_to_hub("Once more", tags="extra", language="en").commit_message

    # Pushed later, from the shell
    trainer = make_trainer(folders["timm"], "timm", **beside)
    trainer.train()
    result["timm"] = measure(trainer.args.output_dir)
    from smd_hf.commands.cli import main
    for _ in range(2):
        for place, repo_id in ("", "tester/timm"), ("ensemble", "tester/timm-ensemble"), ("children", "timm-children"):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert main(["push", str(Path(root, "timm", place)), "--repo_id", repo_id]) == 0
            result["printed " + repo_id] = printed.getvalue()
    """
)

WITH_US = """
    import torch
    torch.set_num_threads(1)
    import smd_hf
    from smd_hf.delta import SparseDelta
    from tests.tiny import tiny_pixels

    @torch.no_grad()
    def logits(model):
        return model.eval()(tiny_pixels()).logits.numpy().tobytes().hex()

    for run in runs:
        result[run] = {
            "child": logits(smd_hf.load(f"tester/{run}", trust_remote_code=True)),
            "ensemble": logits(smd_hf.load(f"tester/{run}-ensemble", trust_remote_code=True)),
            "delta": logits(smd_hf.load(f"tester/{run}-children", subfolder="0001", trust_remote_code=True)),
        }
    first = SparseDelta.from_pretrained("tester/timm-children", subfolder="0000").merge()
    result["first"] = logits(first) != result["timm"]["delta"]
    try:
        smd_hf.load("tester/timm-children")
    except smd_hf.SMDError as error:
        result["no subfolder"] = str(error)
"""

WITHOUT_US = """
    import sys
    sys.modules["smd_hf"] = None
    import torch
    torch.set_num_threads(1)
    from transformers import AutoModelForImageClassification, pipeline
    from tests.tiny import tiny_images, tiny_pixels

    for run in runs:
        name = f"tester/{run}-ensemble"
        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
        with torch.no_grad():
            result[run] = {"ensemble": model(tiny_pixels()).logits.numpy().tobytes().hex()}
    classify = pipeline("image-classification", "tester/timm-ensemble", trust_remote_code=True)
    result["labels"] = sorted(each["label"] for each in classify(tiny_images(1)[0]))
"""

PLAIN = """
    import sys
    sys.modules["smd_hf"] = None
    import timm, torch
    torch.set_num_threads(1)
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from tests.tiny import tiny_pixels

    with torch.no_grad():
        for run in runs:
            custom = {"trust_remote_code": run == "custom"}
            model = AutoModelForImageClassification.from_pretrained(f"tester/{run}", **custom).eval()
            AutoImageProcessor.from_pretrained(f"tester/{run}")
            result[run] = {"child": model(tiny_pixels()).logits.numpy().tobytes().hex()}
        network = timm.create_model("hf_hub:tester/timm", pretrained=True).eval()
        result["network"] = network(tiny_pixels()).numpy().tobytes().hex()
"""


@dataclass
class Pushed:
    """A Hub after three runs, and what the process that pushed them measured and said."""

    hub: HubServer
    root: Path
    result: dict
    home: Path


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    root, home = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("home")
    folders = {kind: save_tiny_checkpoint(name, root / f"{kind}-parent") for kind, name in PARENTS.items()}
    for name in PARENTS:
        license = f"---\nlicense: bsd-3-clause\ndatasets: [owner/images]\n---\n# The {name} parent\n"
        Path(folders[name], "README.md").write_text(license)
    with HubServer() as hub:
        hub.add_user("tester", TOKEN)
        hub.add_repository("tester/parent", Path(folders["vit"]))
        # What the client does not repeat by itself; the answer of a commit that happened is lost.
        hub.fail_next(r"POST /api/repos/create", 429, headers={"Retry-After": "0"})
        hub.fail_next(r"POST /api/validate-yaml", 500, headers={"Retry-After": "0"})
        hub.fail_next(r"POST /api/models/tester/vit/commit/", "lost")
        hub.fail_next(r"POST /api/collections/.*/items", 503, headers={"Retry-After": "0"})
        values = {"root": str(root), "folders": folders, "token": TOKEN}
        result = run_client(PUSH, hub.environment(token=None, home=home), **values)
        assert hub.clear_faults() == []
        yield Pushed(hub, root, result, home)


PARENTS = {"vit": "vit", "custom": "custom", "timm": "timm_convnext"}


def test_whoever_loads_them_gets_the_logits_that_were_measured(pushed):
    measured = {run: pushed.result[run] for run in RUNS}
    environment = pushed.hub.environment(token=TOKEN)
    with_us = run_client(WITH_US, environment, runs=RUNS)
    assert {run: with_us[run] for run in RUNS} == measured
    assert with_us["first"] and "subfolder" in with_us["no subfolder"]

    without_us = run_client(WITHOUT_US, pushed.hub.environment(token=TOKEN), runs=RUNS)
    assert {run: without_us[run]["ensemble"] for run in RUNS} == {run: measured[run]["ensemble"] for run in RUNS}
    assert without_us["labels"] == ["cat", "dog", "horse", "ship"]

    plain = run_client(PLAIN, pushed.hub.environment(token=TOKEN), runs=RUNS)
    assert {run: plain[run]["child"] for run in RUNS} == {run: measured[run]["child"] for run in RUNS}
    assert plain["network"] == measured["timm"]["child"]
    kinds = [kind for run in RUNS for kind in measured[run].values()]
    assert len(set(kinds)) == 3 * len(RUNS)
