"""The ensemble on disk: round trips, fresh processes without smd_hf, code of its own, and tampered files."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import evaluate
import pytest
import torch
from datasets import Dataset, Features, Value
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, TimmWrapperImageProcessor, pipeline

from smd_hf.artifacts.ensemble import SMDEnsembleConfig, SMDEnsembleForImageClassification, save_ensemble

from ..tiny import aligned, save_tiny_checkpoint, tiny_images, tiny_model, tiny_pixels, tiny_processor
from .test_ensemble import make_child, whole_child

PIXELS = tiny_pixels(3)
LABELS = torch.tensor([0, 3, 2])


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def make_ensemble(model) -> SMDEnsembleForImageClassification:
    children = [make_child(model, 0), whole_child(model, 1), {}, make_child(model, 2, 0.1)]
    return SMDEnsembleForImageClassification.from_children(model, children, member_weights=[3, 1, 2, 1])


def assert_equal_outputs(ensemble, output) -> None:
    found = aligned(ensemble)(PIXELS, labels=LABELS, output_members=True)
    assert torch.equal(found.member_logits, output.member_logits)
    assert torch.equal(found.logits, output.logits) and torch.equal(found.loss, output.loss)


# Round trips


@pytest.mark.parametrize("kind", ["vit", "beit", "swin", "resnet", "mobilenet_v2", "timm_resnet", "timm_vit"])
def test_save_and_load_twice_gives_equal_logits(kind, tmp_path):
    ensemble = make_ensemble(tiny_model(kind))
    output = ensemble(PIXELS, labels=LABELS, output_members=True)
    ensemble.save_pretrained(tmp_path / "first")
    first = AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    assert type(first) is SMDEnsembleForImageClassification and not first.training
    assert first.config.id2label == ensemble.parent.config.id2label
    assert_equal_outputs(first, output)
    first.save_pretrained(tmp_path / "second", max_shard_size="60KB")
    assert (tmp_path / "second" / "model.safetensors.index.json").exists()
    second = SMDEnsembleForImageClassification.from_pretrained(tmp_path / "second")
    assert_equal_outputs(second, output)
    assert torch.equal(second.member(0)(PIXELS).logits, output.member_logits[:, 0])
    assert "/" not in json.dumps(json.loads((tmp_path / "first" / "config.json").read_text()).get("_name_or_path", ""))


def test_a_parent_loaded_from_a_checkpoint_of_timm(tmp_path):
    folder = save_tiny_checkpoint("timm_vit", tmp_path / "parent")
    ensemble = make_ensemble(AutoModelForImageClassification.from_pretrained(folder))
    output = ensemble(PIXELS, labels=LABELS, output_members=True)
    ensemble.save_pretrained(tmp_path / "ensemble")
    assert_equal_outputs(SMDEnsembleForImageClassification.from_pretrained(tmp_path / "ensemble"), output)
    assert str(tmp_path) not in (tmp_path / "ensemble" / "config.json").read_text()


def test_members_are_listed_by_the_names_of_a_checkpoint(tmp_path):
    model = tiny_model("vit")
    assert "vit.layers.0.attention.q_proj.weight" in dict(model.named_parameters())
    ensemble = make_ensemble(model)
    ensemble.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(f"parent.{name}" in stored for name in ensemble.config.changes)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in ensemble.config.changes


def test_whole_members_round_trip(tmp_path):
    models = [tiny_model("vit"), tiny_model("timm_resnet"), tiny_model("vit", seed=3)]
    ensemble = SMDEnsembleForImageClassification.from_models(models, combination="majority_vote")
    output = ensemble(PIXELS, labels=LABELS, output_members=True)
    save_ensemble(ensemble, tiny_processor(), tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_equal_outputs(loaded, output)
    assert loaded.config.combination == "majority_vote"


def test_half_precision_and_other_choices_at_loading(tmp_path):
    ensemble = make_ensemble(tiny_model("vit"))
    ensemble.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.bfloat16, torch.int32}
    expected = ensemble.to(torch.bfloat16)(PIXELS, labels=LABELS, output_members=True)
    assert_equal_outputs(loaded, expected)
    loaded.save_pretrained(tmp_path / "half")
    assert_equal_outputs(SMDEnsembleForImageClassification.from_pretrained(tmp_path / "half"), expected)
    for load in (SMDEnsembleForImageClassification.from_pretrained, AutoModelForImageClassification.from_pretrained):
        other = load(tmp_path, combination="mean_logits", attn_implementation="eager")
        assert other.config.combination == "mean_logits"
        assert other.parent.config._attn_implementation == "eager"
    again = SMDEnsembleForImageClassification.from_pretrained(tmp_path, config=loaded.config, output_loading_info=True)
    assert again[1]["missing_keys"] == set() and again[0].parent.config._attn_implementation == "sdpa"


def test_a_partition_of_eight_costs_three_parents(tmp_path):
    model = tiny_model("timm_resnet")
    generator = torch.Generator().manual_seed(0)
    children: list[dict] = [{} for _ in range(8)]
    for name, parameter in model.named_parameters():
        owner = torch.randint(8, (parameter.numel(),), generator=generator)
        for i, child in enumerate(children):
            indices = (owner == i).nonzero().flatten()
            child[name] = (indices.int(), parameter.take(indices) + 0.1)
    model.save_pretrained(tmp_path / "parent")
    SMDEnsembleForImageClassification.from_children(model, children).save_pretrained(tmp_path / "ensemble")
    parent, ensemble = ((tmp_path / f / "model.safetensors").stat().st_size for f in ("parent", "ensemble"))
    assert ensemble <= 3.05 * parent


# Image processors, pipelines, fresh processes


def test_the_image_processor_of_timm_is_found_in_the_ensembles_folder(tmp_path):
    folder = save_tiny_checkpoint("timm_resnet", tmp_path / "parent")
    processor = AutoImageProcessor.from_pretrained(folder)
    images = tiny_images(2, image_size=57)
    expected = processor(images)["pixel_values"]
    ensemble = make_ensemble(AutoModelForImageClassification.from_pretrained(folder))
    for i, given in enumerate((processor, TimmWrapperImageProcessor(dict(processor.data_config)))):
        save_ensemble(ensemble, given, tmp_path / str(i))
        assert not (tmp_path / str(i) / "preprocessor_config.json").exists()
        loaded = AutoImageProcessor.from_pretrained(tmp_path / str(i))
        assert torch.equal(loaded(images)["pixel_values"], expected)
    save_ensemble(ensemble, tiny_processor(24), tmp_path / "other")
    other = AutoImageProcessor.from_pretrained(tmp_path / "other")
    assert torch.equal(
        other(images, return_tensors="pt")["pixel_values"],
        tiny_processor(24)(images, return_tensors="pt")["pixel_values"],
    )


FRESH_PROCESS = textwrap.dedent(
    '''
    """Loads each folder as a stranger would: smd_hf cannot be imported here, transformers alone."""

    import json
    import sys

    sys.modules["smd_hf"] = None
    import evaluate
    import torch
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from safetensors.torch import load_file, save_file
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    torch.set_num_threads(1)


    def aligned(model):
        """As in tests/tiny.py."""
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
        return model


    class Accuracy(evaluate.Metric):
        def _info(self):
            features = Features({"predictions": ClassLabel(num_classes=4), "references": ClassLabel(num_classes=4)})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"accuracy": sum(p == r for p, r in zip(predictions, references)) / len(references)}


    inputs = load_file("inputs.safetensors")
    found, facts = {}, {}
    image = PILImage.fromarray(inputs["image"].numpy())
    for name in sys.argv[1:]:
        try:
            AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
            facts[f"{name} untrusted"] = "loaded"
        except ValueError as error:
            facts[f"{name} untrusted"] = "trust_remote_code" in str(error)
        model = aligned(AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True))
        facts[f"{name} module"] = type(model).__module__
        with torch.no_grad():
            found[f"{name} logits"] = model(inputs["pixel_values"]).logits
            classify = pipeline("image-classification", name, trust_remote_code=True)
            found[f"{name} probabilities"] = torch.tensor([p["score"] for p in classify(image, top_k=4)])
            dataset = Dataset.from_dict({"image": [image] * 2, "label": [0, 1]})
            dataset = dataset.cast(Features({"image": Image(), "label": ClassLabel(num_classes=4)}))
            # evaluate 0.4.6 takes no pipeline under transformers 5: it asks for TFPreTrainedModel.
            result = evaluate.evaluator("image-classification").compute(
                model,
                dataset,
                metric=Accuracy(),
                feature_extractor=AutoImageProcessor.from_pretrained(name),
                label_mapping=model.config.label2id,
            )
            facts[f"{name} accuracy"] = result["accuracy"]
            model.save_pretrained(f"{name}_again")
            again = AutoModelForImageClassification.from_pretrained(f"{name}_again", trust_remote_code=True)
            found[f"{name} again"] = aligned(again)(inputs["pixel_values"]).logits
    save_file(found, "found.safetensors")
    print(json.dumps(facts))
    '''
)


@pytest.mark.slow  # test_ensemble_travels.py has one that is not
def test_a_process_without_smd_hf_loads_what_was_saved(tmp_path):
    custom = save_tiny_checkpoint("custom", tmp_path / "custom")
    folders = {
        "vit": (make_ensemble(tiny_model("vit")), tiny_processor()),
        "timm": (make_ensemble(tiny_model("timm_resnet")), TimmWrapperImageProcessor({"input_size": [3, 32, 32]})),
        "own": (
            make_ensemble(AutoModelForImageClassification.from_pretrained(custom, trust_remote_code=True)),
            tiny_processor(),
        ),
    }
    image = tiny_images(1)[0]
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3)
    save_file({"pixel_values": PIXELS, "image": raw}, tmp_path / "inputs.safetensors")
    logits, probabilities = {}, {}
    for name, (ensemble, processor) in folders.items():
        save_ensemble(ensemble, processor, tmp_path / name)
        logits[name] = ensemble(PIXELS).logits
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        probabilities[name] = ensemble(pixels).logits[0].exp()
        # With smd_hf, the same pipeline.
        scores = pipeline("image-classification", str(tmp_path / name), trust_remote_code=True)(image, top_k=4)
        torch.testing.assert_close(
            torch.tensor([s["score"] for s in scores]), probabilities[name].sort(descending=True)[0]
        )
    (tmp_path / "fresh.py").write_text(FRESH_PROCESS)
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "fresh.py", *folders],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    facts, found = json.loads(run.stdout.splitlines()[-1]), load_file(tmp_path / "found.safetensors")
    for name in folders:
        assert torch.equal(found[f"{name} logits"], logits[name])
        assert torch.equal(found[f"{name} again"], logits[name])
        torch.testing.assert_close(found[f"{name} probabilities"], probabilities[name].sort(descending=True)[0])
        best = probabilities[name].argmax().item()
        assert facts[f"{name} accuracy"] == (0.5 if best < 2 else 0.0)
        assert facts[f"{name} untrusted"] is True
        assert facts[f"{name} module"].startswith("transformers_modules.")


def test_evaluates_evaluator_takes_the_folder(tmp_path):
    class Accuracy(evaluate.Metric):
        def _info(self):
            features = Features({"predictions": Value("int64"), "references": Value("int64")})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"accuracy": sum(p == r for p, r in zip(predictions, references)) / len(references)}

    ensemble, processor, images = make_ensemble(tiny_model("vit")), tiny_processor(), tiny_images(5)
    save_ensemble(ensemble, processor, tmp_path)
    dataset = Dataset.from_dict({"image": images, "label": [0, 1, 2, 3, 0]})
    result = evaluate.evaluator("image-classification").compute(
        str(tmp_path), dataset, metric=Accuracy(), label_mapping=ensemble.config.label2id
    )
    predictions = ensemble(processor(images, return_tensors="pt")["pixel_values"]).logits.argmax(-1)
    assert result["accuracy"] == (predictions == torch.tensor([0, 1, 2, 3, 0])).sum().item() / 5


# A parent with code of its own


@pytest.fixture
def custom_ensemble(tmp_path) -> Path:
    parent = save_tiny_checkpoint("custom", tmp_path / "parent")
    model = AutoModelForImageClassification.from_pretrained(parent, trust_remote_code=True)
    save_ensemble(make_ensemble(model), tiny_processor(), tmp_path / "ensemble")
    return tmp_path / "ensemble"


def test_a_parents_code_travels_and_runs_only_where_it_is_trusted(custom_ensemble, tmp_path, monkeypatch):
    assert (custom_ensemble / "layers_tiny_custom.py").exists()
    expected = AutoModelForImageClassification.from_pretrained(custom_ensemble, trust_remote_code=True)(PIXELS).logits
    code = custom_ensemble / "modeling_tiny_custom.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + code.read_text())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    for load in (SMDEnsembleForImageClassification.from_pretrained, AutoModelForImageClassification.from_pretrained):
        for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": None}):
            with pytest.raises(ValueError, match="trust_remote_code=True"):
                load(custom_ensemble, **trust)
    config = SMDEnsembleConfig.from_pretrained(custom_ensemble)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForImageClassification.from_config(config)
    assert not (tmp_path / "ran").exists()
    trusted = SMDEnsembleForImageClassification.from_pretrained(custom_ensemble, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert torch.equal(trusted(PIXELS).logits, expected)
    trusted.member(0).save_pretrained(tmp_path / "child")
    child = AutoModelForImageClassification.from_pretrained(tmp_path / "child", trust_remote_code=True)
    assert torch.equal(child(PIXELS).logits, trusted.member(0)(PIXELS).logits)


def test_two_models_with_different_code_of_one_name_are_refused(tmp_path):
    first = save_tiny_checkpoint("custom", tmp_path / "first")
    second = save_tiny_checkpoint("custom", tmp_path / "second", seed=1)
    code = Path(second) / "layers_tiny_custom.py"
    code.write_text(code.read_text() + "\n# Another version.\n")
    models = [AutoModelForImageClassification.from_pretrained(f, trust_remote_code=True) for f in (first, second)]
    ensemble = SMDEnsembleForImageClassification.from_models(models)
    with pytest.raises(ValueError, match=r"layers_tiny_custom\.py"):
        ensemble.save_pretrained(tmp_path / "ensemble")


def test_other_label_names_than_paths_may_look_like_paths(tmp_path):
    model = tiny_model("vit")
    model.config.id2label[0] = "/m/01g317"
    SMDEnsembleForImageClassification.from_children(model, [{}]).save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label[0] == "/m/01g317"
