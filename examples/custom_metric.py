"""
Evolve for a metric that has no gradient: balanced accuracy, which counts every class alike however rare it is.

    python examples/custom_metric.py --model google/vit-base-patch16-224 --train_file train.parquet \
        --validation_file test.parquet --output_dir evolved
"""

import argparse

from sklearn.metrics import balanced_accuracy_score
from transformers import EvalPrediction

from smd_hf import EvolutionArguments, EvolutionTrainer, load_splits


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    predicted = prediction.predictions.argmax(axis=-1)
    return {"balanced_accuracy": balanced_accuracy_score(prediction.label_ids, predicted)}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a model on the Hub, or its folder")
    parser.add_argument("--train_file", required=True, help="Parquet with images and labels")
    parser.add_argument("--validation_file", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=32)
    return parser


def main(script_args: argparse.Namespace) -> tuple[float, float]:
    train_dataset, eval_dataset = load_splits(
        train_file=script_args.train_file, validation_file=script_args.validation_file
    )
    trainer = EvolutionTrainer(
        model=script_args.model,
        args=EvolutionArguments(
            output_dir=script_args.output_dir,
            population_size=script_args.population_size,
            fitness="balanced_accuracy",
        ),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )
    before = trainer.evaluate()["eval_balanced_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_balanced_accuracy"]
    print(f"balanced accuracy on the validation images: {before:.4f} before, {after:.4f} after")
    return before, after


if __name__ == "__main__":
    main(make_parser().parse_args())
