"""
Evolve a model that only runs forward: a ViT with int8 weights, whose biases, norms and head adapt to another camera.

The ViT is trained here on scikit-learn's digits and quantised, by torchao where it is installed, else by torch itself; nothing
is downloaded.

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
from smd_hf.statistics import compare
from smd_hf.subspaces import make_decomposition


def train(batches: ImageBatches, epochs: int) -> ViTForImageClassification:
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, num_labels=10)
    model = ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, **sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in batches:
            model(pixel_values=batch.pixels, labels=batch.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def quantised(model: nn.Module) -> nn.Module:
    """Every Linear but the classifier with int8 weights, and inputs that are quantised as they come: no gradient passes."""
    if find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(
            model,
            Int8DynamicActivationInt8WeightConfig(),
            lambda module, name: isinstance(module, nn.Linear) and name != "classifier",
        )
        return model
    model.vit = torch.ao.quantization.quantize_dynamic(model.vit, {nn.Linear}, dtype=torch.qint8)
    return model


def main(script_args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(script_args.seed)
    collator = ImageCollator(ViTImageProcessor(size={"height": SIZE, "width": SIZE}), "image", "label")
    splits = {name: split.shuffle(script_args.seed) for name, split in digit_splits(script_args.seed).items()}
    data = {name: ImageBatches(split, collator, 32, cache_bytes=10**8) for name, split in splits.items()}
    fitness = ImageBatches(splits["train"], collator, 32, range(450), cache_bytes=10**8)
    selection = ImageBatches(splits["train"], collator, 32, range(450, 599), cache_bytes=10**8)

    model = train(data["parent"], script_args.epochs)
    logits = {"float, as trained": Evaluator(model, torch.device("cpu")).logits(data["clean_test"])}
    logits["float, shifted"] = Evaluator(model, torch.device("cpu")).logits(data["test"])
    model = quantised(model)
    evaluator = Evaluator(model, torch.device("cpu"))
    logits["int8, shifted"] = evaluator.logits(data["test"])

    space = parameter_space(model, ["norms", "biases", "head"])  # what is quantised is left alone
    mutation = Mutation(model, make_decomposition("blocks", space, script_args.population_size), script_args.seed)
    recombination = GaussNewton(top_k=1, objective=cross_entropy())
    evolution = Evolution(model, mutation, evaluator, Fitness("nll"), recombination, fitness, selection)
    for generation in range(script_args.num_generations):
        evolution.step(generation, sigma=0.1)
    logits["int8, shifted, evolved"] = evaluator.logits(data["test"])

    accuracy = {name: float((each.argmax(-1) == data["test"].labels).mean()) for name, each in logits.items()}
    for name, share in accuracy.items():
        print(f"{name:24}{share:8.2%}")
    print(compare(logits["int8, shifted"], logits["int8, shifted, evolved"], data["test"].labels).verdict)
    # The quantised weights are those that quantising gives again.
    save_file({name: tensor.detach().clone() for name, tensor in mutation.parameters.items()}, script_args.output_file)
    print(f"{space.total:,} evolved numbers, float32, are in {script_args.output_file}")
    return accuracy


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_file", required=True, help="where the evolved biases, norms and head go")
    parser.add_argument("--epochs", type=int, default=30, help="of training on clean digits")
    parser.add_argument("--population_size", type=int, default=48)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
