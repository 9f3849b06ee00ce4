"""
Evolve an object detector by mean average precision, which has no gradient, and find objects in a pipeline.

    python examples/evolve_detection.py --model hustvl/yolos-tiny --train_file train.parquet --validation_file test.parquet \
        --output_dir evolved
"""

import argparse

from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a detector on the Hub, or its folder")
    parser.add_argument("--train_file", required=True, help="Parquet with image and objects (bbox, category)")
    parser.add_argument("--validation_file", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=32)
    parser.add_argument("--threshold", type=float, default=0.5, help="the least score of a box that is printed")
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_file=script_args.train_file, validation_file=script_args.validation_file, classified=False
    )
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        population_size=script_args.population_size,
        fitness="map",
        recombination="top_k_mean",
        per_device_eval_batch_size=8,
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    detect = pipeline("object-detection", script_args.output_dir)
    for found in detect(eval_dataset[0]["image"], threshold=script_args.threshold):
        print(f"{found['label']} {found['score']:.2f} {found['box']}")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
