"""
Evolve the norms and the head of a timm model; the result loads in timm and in transformers.

    python examples/evolve_timm.py --model timm/resnet18.a1_in1k --train_dir photos/train --validation_dir photos/test \
        --output_dir evolved
"""

import argparse

import timm

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="timm/resnet18.a1_in1k", help="a timm model on the Hub, or its folder")
    parser.add_argument("--train_dir", required=True, help="one sub-folder of images for each class")
    parser.add_argument("--validation_dir", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=32)
    parser.add_argument("--num_generations", type=int, default=5)
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_dir=script_args.train_dir, validation_dir=script_args.validation_dir
    )
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        population_size=script_args.population_size,
        num_generations=script_args.num_generations,
        mutable_parameters=["norms", "head"],
        recombination="top_k_mean",
        per_device_eval_batch_size=32,
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    evolved = timm.create_model(f"local-dir:{script_args.output_dir}", pretrained=True)
    print(f"timm loads it: {type(evolved).__name__} with {evolved.num_classes} classes")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
