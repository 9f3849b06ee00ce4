"""
Evolve a classifier of images with several labels by macro F1, which has no gradient.

    python examples/evolve_multi_label.py --model MODEL --train_file train.parquet --validation_file test.parquet \
        --label_columns rain fog snow --output_dir evolved

MODEL has problem_type="multi_label_classification" in its configuration.
"""

import argparse

from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a multi-label classifier on the Hub, or its folder")
    parser.add_argument("--train_file", required=True, help="Parquet with images and labels")
    parser.add_argument("--validation_file", required=True, help="the same, to report on")
    parser.add_argument(
        "--label_columns", nargs="+", help="columns of 0 and 1; by default, a column of lists is found"
    )
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=32)
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_file=script_args.train_file, validation_file=script_args.validation_file, classified=False
    )
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        population_size=script_args.population_size,
        label_columns=script_args.label_columns,
        fitness="f1_macro",
        recombination="gauss_newton",
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    classify = pipeline("image-classification", script_args.output_dir)
    for found in classify(eval_dataset[0]["image"]):
        print(f"{found['label']}: {found['score']:.3f}")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
