"""
Evolve the image tower of CLIP or SigLIP for a few candidate labels; the texts stay as they are.

    python examples/evolve_zero_shot.py --model openai/clip-vit-base-patch32 --train_dir photos/train \
        --validation_dir photos/test --hypothesis_template "a blurred photo of {}." --output_dir evolved
"""

import argparse

from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="openai/clip-vit-base-patch32", help="a model on the Hub, or its folder")
    parser.add_argument("--train_dir", required=True, help="one sub-folder of images for each class")
    parser.add_argument("--validation_dir", required=True, help="the same, to report on")
    parser.add_argument("--hypothesis_template", default="This is a photo of {}.", help="the text of a class")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=32)
    return parser


def main(script_args: argparse.Namespace) -> dict:
    train_dataset, eval_dataset = load_splits(
        train_dir=script_args.train_dir, validation_dir=script_args.validation_dir
    )
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        population_size=script_args.population_size,
        hypothesis_template=script_args.hypothesis_template,
        recombination="gauss_newton",
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=train_dataset, eval_dataset=eval_dataset
    )
    trainer.train()
    print(trainer.report["verdict"])

    texts = trainer.report["zero_shot"]
    classify = pipeline("zero-shot-image-classification", script_args.output_dir)
    for found in classify(eval_dataset[0]["image"], **texts)[:3]:
        print(f"{found['label']}: {found['score']:.3f}")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
