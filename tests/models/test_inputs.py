"""All inputs that an image processor makes go to the model: token ids, patches with masks and shapes, as well as pixel values."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor, AutoModelForImageClassification

from smd_hf import EvolutionTrainer, SMDEnsembleForImageClassification
from smd_hf.data.batches import ImageBatches
from smd_hf.data.rows import ImageCollator
from smd_hf.errors import SMDError
from smd_hf.models.heads import find_heads, head_parameter_names
from smd_hf.models.inputs import input_names, noise_inputs
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.scoring.costs import suffix_costs
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.prefix_replay import PrefixReplay
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.plain import plain_arguments
from tests.tiny import label_names, tiny_images, tiny_model, tiny_processor

KINDS = ("imagegpt", "siglip2", "naflexvit")
INPUTS = {
    "imagegpt": {"input_ids"},
    "siglip2": {"pixel_values", "pixel_attention_mask", "spatial_shapes"},
    "naflexvit": {"pixel_values"},
}
HEADS = {"imagegpt": "score.", "siglip2": "classifier.", "naflexvit": "timm_model.head."}


def save_checkpoint(kind, folder, num_labels=4):
    """A tiny model of this architecture with its own image processor; returns the folder's name."""
    names = label_names(num_labels)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if kind == "imagegpt":
        config = transformers.ImageGPTConfig(
            vocab_size=9, n_positions=36, n_embd=16, n_layer=3, n_head=2, attn_pdrop=0.0, **labels
        )
        clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32)
        processor = transformers.ImageGPTImageProcessor(clusters=clusters, size={"height": 6, "width": 6})
    elif kind == "siglip2":
        vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
        config = transformers.Siglip2Config(vision_config=vision | {"num_patches": 16, "patch_size": 8}, **labels)
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    else:
        config = transformers.TimmWrapperConfig.from_dict(
            {
                "architecture": "naflexvit_base_patch16_gap",
                "num_classes": num_labels,
                "label_names": names,
                "model_args": {
                    "embed_dim": 16,
                    "depth": 3,
                    "num_heads": 2,
                    "patch_size": 8,
                    "pos_embed_grid_size": [4, 4],
                },
                "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
            }
        )
        processor = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def image_rows(count, seed=0):
    """Images of several sizes, so that a model of patches gets several shapes."""
    sizes = [(32, 32), (48, 24), (20, 40)]
    images = [image.resize(sizes[i % 3]) for i, image in enumerate(tiny_images(count, 5, seed))]
    return [{"image": image, "label": i % 4} for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: save_checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def load(checkpoints, kind):
    model = load_model(checkpoints[kind])
    return model, load_image_processor(checkpoints[kind], model=model)


def reference_logits(model, processor, rows):
    """As a user of transformers would get them, image by image where shapes differ."""
    with torch.inference_mode():
        return torch.cat([model(**processor([row["image"]], return_tensors="pt")).logits for row in rows]).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_whole_processor_output(kind, checkpoints):
    model, processor = load(checkpoints, kind)
    rows = image_rows(10)
    collator = ImageCollator(processor, "image", "label", input_names=input_names(model))
    assert set(collator(rows)) == INPUTS[kind] | {"labels"}
    batches = ImageBatches(rows, collator, 4, input_names=input_names(model))
    [first, *_] = batches
    assert set(first.inputs(torch.device("cpu"), model.dtype)) == INPUTS[kind]
    logits = Evaluator(model, torch.device("cpu")).logits(batches)
    assert np.allclose(logits, reference_logits(model, processor, rows), atol=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_prefixes_give_the_same_bytes(kind, checkpoints):
    model, processor = load(checkpoints, kind)
    collator = ImageCollator(processor, "image", "label", input_names=input_names(model))
    mutation = Mutation(model, make_decomposition("blocks", parameter_space(model), 4))
    variants = [
        Variant(str(child.index), lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in mutation.children(0, 0.2)
    ]
    logits = [
        np.stack(
            [
                score.logits
                for score in Evaluator(model, torch.device("cpu"), prefix_replay=replay).score(
                    variants, ImageBatches(image_rows(10), collator, 4), keep_logits=True
                )
            ]
        )
        for replay in (True, False)
    ]
    assert logits[0].tobytes() == logits[1].tobytes() and not np.array_equal(logits[0][0], logits[0][1])


def test_replay_compares_all_inputs(checkpoints):
    model, processor = load(checkpoints, "siglip2")
    rows = image_rows(3)
    inputs = dict(processor([row["image"] for row in rows], return_tensors="pt"))
    other = inputs | {"spatial_shapes": inputs["spatial_shapes"].flip(1)}
    replay = PrefixReplay(model)
    with torch.inference_mode():
        with replay.record():
            model(**inputs)
        expected = model(**other).logits
        with replay.replay([]):
            assert torch.equal(model(**other).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_found_without_data_and_costs_are_counted(kind, checkpoints):
    model, processor = load(checkpoints, kind)
    assert all(name.startswith(HEADS[kind]) for name in head_parameter_names(model)) and head_parameter_names(model)
    inputs = processor([image_rows(1)[0]["image"]], return_tensors="pt")
    assert find_heads(model, inputs).keys() == find_heads(model, noise_inputs(model)).keys()
    costs = suffix_costs(model, inputs)
    assert costs[0] == 1 and costs[-1] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, recombination",
    [("siglip2", "top_k_mean"), ("imagegpt", "gauss_newton"), ("naflexvit", "gauss_newton")],
)
def test_a_run_evolves_saves_and_leaves_an_ensemble(kind, recombination, checkpoints, tmp_path):
    train, test = image_rows(24, 1), image_rows(12, 2)
    args = plain_arguments(
        str(tmp_path / "out"),
        num_generations=1,
        population_size=4,
        sigma=0.3,
        recombination=recombination,
        ensemble_size=2,
        save_children=1,
        per_device_eval_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        image_column_name="image",
    )
    trainer = EvolutionTrainer(checkpoints[kind], args, train_dataset=train, eval_dataset=test)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(trainer.report["evolved"]["accuracy"])
    # Without smd_hf, in a process of its own: transformers alone.
    script = f"""
import sys
sys.modules["smd_hf"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from PIL import Image
out = {str(tmp_path / "out")!r}
model = AutoModelForImageClassification.from_pretrained(out).eval()
ensemble = AutoModelForImageClassification.from_pretrained(out + "/ensemble", trust_remote_code=True).eval()
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
with torch.inference_mode():
    torch.save([model(**inputs).logits, ensemble(**inputs).logits], {str(tmp_path / "logits.pt")!r})
"""
    processor = load_image_processor(checkpoints[kind], model=trainer.model)
    inputs = dict(processor([row["image"] for row in test], return_tensors="pt"))
    torch.save(inputs, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    alone, alone_ensemble = torch.load(tmp_path / "logits.pt")
    with torch.inference_mode():
        assert torch.equal(alone, trainer.model(**inputs).logits)
    ensemble = SMDEnsembleForImageClassification.from_pretrained(tmp_path / "out" / "ensemble")
    assert torch.equal(alone_ensemble, ensemble(**inputs).logits)
    members = torch.stack([ensemble.member(i)(**inputs).logits for i in range(len(ensemble.members))], 1)
    assert torch.allclose(ensemble(**inputs, output_members=True).member_logits, members, atol=1e-6)
    if kind != "naflexvit":
        assert set(AutoImageProcessor.from_pretrained(tmp_path / "out")([test[0]["image"]])) == INPUTS[kind]
    json.loads((tmp_path / "out" / "gain_report.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_is_fitted_on_these_inputs(kind, checkpoints, tmp_path):
    rows = [{"image": row["image"], "label": ["oak", "elm"][row["label"] % 2]} for row in image_rows(16, 1)]
    args = plain_arguments(
        str(tmp_path),
        num_generations=1,
        population_size=2,
        sigma=0.1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = EvolutionTrainer(checkpoints[kind], args, train_dataset=rows)
    assert trainer.model.config.num_labels == 2
    trainer.train()


def test_rows_that_hold_the_main_input_need_no_processor(checkpoints, tmp_path):
    model, processor = load(checkpoints, "imagegpt")
    rows = image_rows(12)
    ids = processor([row["image"] for row in rows], return_tensors="pt")["input_ids"]
    ready = [{"input_ids": ids[i], "label": row["label"]} for i, row in enumerate(rows)]
    args = plain_arguments(
        str(tmp_path),
        num_generations=1,
        population_size=2,
        sigma=0.1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    EvolutionTrainer(model, args, train_dataset=ready).train()


def test_columns_that_the_model_does_not_take_stay_out_of_it():
    model = tiny_model("vit")
    rows = [{"pixel_values": torch.randn(3, 32, 32), "label": 0, "score": torch.tensor(1.0)} for _ in range(4)]
    batches = ImageBatches(rows, transformers.default_data_collator, 4, input_names=input_names(model))
    [batch] = batches
    assert set(batch.stored) == {"pixel_values"}
    Evaluator(model, torch.device("cpu")).logits(batches)


def test_a_collator_without_an_input_is_refused():
    rows = [{"picture": 1, "label": 0}] * 4
    batches = ImageBatches(rows, transformers.default_data_collator, 4, input_names=input_names(tiny_model("vit")))
    with pytest.raises(
        SMDError,
        match=r"returns no input of the model: it returns labels, picture, and the model takes .*pixel_values",
    ):
        list(batches)


def test_a_processor_of_another_model_is_told_of(checkpoints, caplog):
    model, processor = tiny_model("vit"), load(checkpoints, "siglip2")[1]
    gpt, vit_processor = load(checkpoints, "imagegpt")[0], tiny_processor()
    with pytest.raises(SMDError, match=r"\(ViTImageProcessor\) makes pixel_values, and the model takes .*input_ids"):
        ImageCollator(vit_processor, "image", "label", input_names=input_names(gpt))(image_rows(2))
    with pytest.raises(SMDError, match=r"shape \(2, 16, 192\); the model takes \(images, 3, height, width\)"):
        ImageCollator(processor, "image", "label", input_names=input_names(model))(image_rows(2))
