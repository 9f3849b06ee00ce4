"""
Evolve the norms of a backbone so that images find others of their kind.

    python examples/evolve_features.py --model facebook/dinov2-small --train_dir photos/train --validation_dir photos/test \
        --output_dir evolved
"""

import argparse

from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="facebook/dinov2-small", help="a backbone on the Hub, or its folder")
    parser.add_argument("--train_dir", required=True, help="one sub-folder of images for each label")
    parser.add_argument("--validation_dir", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved backbone goes")
    parser.add_argument("--population_size", type=int, default=16)
    parser.add_argument("--num_generations", type=int, default=5)
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_dir=script_args.train_dir, validation_dir=script_args.validation_dir
    )
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        task="image-feature-extraction",
        fitness="recall_at_1",
        recombination="top_k_mean",
        mutable_parameters=["norms"],
        population_size=script_args.population_size,
        num_generations=script_args.num_generations,
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    extract = pipeline("image-feature-extraction", script_args.output_dir)
    print(f"Tokens of an image: {tuple(extract(eval_dataset[0]['image'], return_tensors=True).shape)}")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
