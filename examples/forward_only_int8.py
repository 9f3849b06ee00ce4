"""
Evolve a model that only runs forward: a ViT with int8 weights, whose biases, norms and head adapt to another camera.

It is trained here on scikit-learn's digits; torchao quantises it where it is installed, else torch. Nothing is downloaded.

    python examples/forward_only_int8.py --output_file evolved.safetensors
"""

import argparse
from importlib.util import find_spec

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from smd_hf import ImageCollator
from smd_hf.demo import SIZE, digit_splits
from smd_hf.evaluation.engine import Evaluator
from smd_hf.evaluation.images import ImageBatches
from smd_hf.evolution import Evolution
from smd_hf.gauss_newton import GaussNewton
from smd_hf.mutation import Mutation
from smd_hf.objectives import cross_entropy
from smd_hf.parameters import parameter_space
from smd_hf.selection import Fitness
from smd_hf.statistics import accuracy, compare
from smd_hf.subspaces import make_decomposition


def train(batches: ImageBatches, epochs: int) -> ViTForImageClassification:
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, num_labels=10)
    model = ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, **sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in batches:
            model(**batch.stored, labels=batch.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def quantise(model: nn.Module) -> None:
    """Every Linear but the classifier gets int8 weights, and quantises its inputs as they come: no gradient passes."""
    if find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model.vit, Int8DynamicActivationInt8WeightConfig())
    else:
        model.vit = torch.ao.quantization.quantize_dynamic(model.vit, {nn.Linear}, dtype=torch.qint8)


def main(script_args: argparse.Namespace) -> None:
    torch.manual_seed(script_args.seed)
    collator = ImageCollator(ViTImageProcessor(size={"height": SIZE, "width": SIZE}), "image", "label")
    splits = {name: split.shuffle(script_args.seed) for name, split in digit_splits(script_args.seed).items()}
    data = {name: ImageBatches(split, collator, 32, cache_bytes=10**8) for name, split in splits.items()}
    parts = [ImageBatches(splits["train"], collator, 32, rows, 10**8) for rows in (range(450), range(450, 599))]
    model = train(data["parent"], script_args.epochs)
    logits = {"float, as trained": Evaluator(model, torch.device("cpu")).logits(data["clean_test"])}
    logits["float, shifted"] = Evaluator(model, torch.device("cpu")).logits(data["test"])
    quantise(model)
    evaluator = Evaluator(model, torch.device("cpu"))
    logits["int8, shifted"] = evaluator.logits(data["test"])
    space = parameter_space(model, ["norms", "biases", "head"])  # what is quantised is left alone
    mutation = Mutation(model, make_decomposition("blocks", space, script_args.population_size), script_args.seed)
    recombination = GaussNewton(top_k=1, objective=cross_entropy())
    evolution = Evolution(model, mutation, evaluator, Fitness("nll"), recombination, *parts)
    for generation in range(script_args.num_generations):
        evolution.step(generation, sigma=0.1)
    logits["int8, shifted, evolved"] = evaluator.logits(data["test"])

    labels = data["test"].labels
    print("\n".join(f"{name:24}{accuracy(each, labels):8.2%}" for name, each in logits.items()))
    print(compare(logits["int8, shifted"], logits["int8, shifted, evolved"], labels).verdict)
    save_file({name: tensor.detach().clone() for name, tensor in mutation.parameters.items()}, script_args.output_file)
    print(f"{space.total:,} evolved numbers are in {script_args.output_file}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_file", required=True, help="where the evolved biases, norms and head go")
    for name, default in (("epochs", 30), ("population_size", 48), ("num_generations", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
