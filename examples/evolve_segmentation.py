"""
Evolve a model for semantic segmentation by mean IoU, which has no gradient, and read its masks in a pipeline.

    python examples/evolve_segmentation.py --model nvidia/segformer-b0-finetuned-ade-512-512 --train_file train.parquet \
        --validation_file test.parquet --output_dir evolved
"""

import argparse

import numpy as np
from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a model on the Hub, or its folder")
    parser.add_argument("--train_file", required=True, help="Parquet with the columns image and annotation, the mask")
    parser.add_argument("--validation_file", required=True, help="the same, to report on")
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
        fitness="mean_iou",
        recombination="gauss_newton",
        per_device_eval_batch_size=8,
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    segment = pipeline("image-segmentation", script_args.output_dir)
    for found in segment(eval_dataset[0]["image"]):
        print(f"{found['label']}: {np.array(found['mask']).astype(bool).mean():.1%} of the first image")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
