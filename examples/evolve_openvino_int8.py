"""
Quantise a classifier for OpenVINO, evolve it in the engine that serves it, and save what OpenVINO loads.

NNCF quantises the model to int8 on training images. Then biases evolve, into which OpenVINO has folded the norms; the integers stay. Each
child is compiled and scored as it would be served. The classifier is fitted exactly: class prior or temperature first, all of it
last. `--mutable_parameters all` evolves the scales of the weights, too. (`pip install 'smd-hf[int8]'`)

    python examples/evolve_openvino_int8.py --model timm/tf_efficientnet_lite0.in1k --train_file train.parquet \
        --validation_file test.parquet --output_dir evolved_int8
"""

import argparse
from pathlib import Path

import torch

from smd_hf import ImageCollator, load_image_processor, load_model, load_splits
from smd_hf.artifacts.exporting import export_model
from smd_hf.data.alignment import align_labels
from smd_hf.data.batches import ImageBatches
from smd_hf.metrics.statistics import accuracy, compare
from smd_hf.models.openvino_ir import OpenVINOClassifier, OpenVINOHead, quantised
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.evolution import Evolution
from smd_hf.search.fitness import Fitness
from smd_hf.search.gauss_newton import GaussNewton
from smd_hf.search.head.alone import fit_head
from smd_hf.search.losses import cross_entropy
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition


def main(script_args: argparse.Namespace) -> dict[str, float]:
    folder, cpu = Path(script_args.output_dir), torch.device("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(script_args.model), load_image_processor(script_args.model)
    splits = load_splits(train_file=script_args.train_file, validation_file=script_args.validation_file)
    train, test = (split.shuffle(script_args.seed) for split in splits)
    aligned = align_labels(train.features["label"].names, train["label"], model.config.id2label, head_init="keep")
    collator = ImageCollator(processor, "image", "label", aligned.mapping)

    def batches(split, *bounds):  # large ones, as each child is compiled once a batch
        return ImageBatches(split, collator, 256, range(len(split))[slice(*bounds)], cache_bytes=10**9)

    count, test_images = script_args.train_images, batches(test, 0, script_args.test_images)
    parts = batches(train, 0, count), batches(train, count, count + count // 4)
    logits = {"float": Evaluator(model, cpu).logits(test_images)}

    exported = export_model(model, processor, "openvino", folder)
    calibration = [collator([train[row]])["pixel_values"].numpy() for row in range(script_args.calibration_images)]
    int8 = quantised(exported.path, calibration)
    evaluator = Evaluator(int8, cpu, prefix_replay=False)
    logits["int8"] = evaluator.logits(test_images)

    head = OpenVINOHead(int8)
    fit_head(evaluator, head, *parts, whole=False)  # the classes at hand; what children then learn is worth more
    space = parameter_space(int8, script_args.mutable_parameters, head.parameter_names)
    decomposition = make_decomposition("blocks", space, script_args.population_size)
    mutation = Mutation(int8, decomposition, script_args.seed)
    recombination = GaussNewton(top_k=1, loss=cross_entropy())
    evolution = Evolution(int8, mutation, evaluator, Fitness("nll"), recombination, *parts)
    for generation in range(script_args.num_generations):
        evolution.step(generation, sigma=script_args.sigma)
    fit_head(evaluator, head, *parts)
    int8.save(folder / "int8.xml")
    served = OpenVINOClassifier(folder / "int8.xml")  # what was saved, as OpenVINO loads it
    logits["int8, evolved"] = Evaluator(served, cpu, prefix_replay=False).logits(test_images)
    scores = {name: accuracy(each, test_images.labels) for name, each in logits.items()}
    print("\n".join(f"{name:14}{score:8.2%}" for name, score in scores.items()))
    print(compare(logits["int8"], logits["int8, evolved"], test_images.labels, names=("int8", "evolved")).verdict)
    return scores


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in ("model", "train_file", "validation_file", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--mutable_parameters", nargs="+", default=["biases"])
    images = {"calibration_images": 128, "train_images": 800, "test_images": 2000}
    for name, default in {**images, "population_size": 48, "num_generations": 2, "sigma": 0.05, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
