"""
Evolve a spiking classifier, which no gradient passes through, like any other model.

    python examples/evolve_spiking.py --train_dir photos/train --validation_dir photos/test --output_dir evolved
"""

import argparse
from pathlib import Path

import torch
from spiking_model import SpikingConfig, SpikingForImageClassification
from transformers import ViTImageProcessor

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="one sub-folder of images for each class")
    parser.add_argument("--validation_dir", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--size", type=int, default=32, help="height and width of an image")
    parser.add_argument("--population_size", type=int, default=32)
    parser.add_argument("--num_generations", type=int, default=20)
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_dir=script_args.train_dir, validation_dir=script_args.validation_dir
    )
    names = train_dataset.features["label"].names
    torch.manual_seed(0)
    parent = SpikingForImageClassification(SpikingConfig(id2label=dict(enumerate(names)))).eval()
    folder = str(Path(script_args.output_dir) / "parent")
    parent.save_pretrained(folder)  # with its code
    size = {"height": script_args.size, "width": script_args.size}
    ViTImageProcessor(size=size).save_pretrained(folder)

    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        model_init_kwargs={"trust_remote_code": True},
        population_size=script_args.population_size,
        num_generations=script_args.num_generations,
        sigma=0.1,
    )
    trainer = EvolutionTrainer(folder, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset)
    trainer.train()
    print(trainer.report["verdict"])
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
