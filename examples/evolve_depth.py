"""
Evolve a model of depth by the absolute relative error, and look at its prediction for one image.

    python examples/evolve_depth.py --model depth-anything/Depth-Anything-V2-Small-hf --train_file rooms/train.parquet \
        --validation_file rooms/test.parquet --output_dir evolved
"""

import argparse

from datasets import load_dataset
from transformers import pipeline

from smd_hf import EvolutionArguments, EvolutionTrainer


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="depth-anything/Depth-Anything-V2-Small-hf", help="a model id or folder")
    parser.add_argument("--train_file", required=True, help="columns image and depth_map")
    parser.add_argument("--validation_file", required=True, help="the same, to report on")
    parser.add_argument("--output_dir", required=True, help="where the evolved model goes")
    parser.add_argument("--population_size", type=int, default=16)
    parser.add_argument("--num_generations", type=int, default=3)
    parser.add_argument("--depth_scale", type=float, help="0.001 for maps in millimeters")
    return parser


def main(script_args: argparse.Namespace) -> dict:
    files = {"train": script_args.train_file, "test": script_args.validation_file}
    rooms = load_dataset("parquet", data_files=files)
    training_args = EvolutionArguments(
        output_dir=script_args.output_dir,
        population_size=script_args.population_size,
        num_generations=script_args.num_generations,
        fitness="abs_rel",
        depth_scale=script_args.depth_scale,
        per_device_eval_batch_size=4,
    )
    trainer = EvolutionTrainer(
        script_args.model, training_args, train_dataset=rooms["train"], eval_dataset=rooms["test"]
    )
    trainer.train()
    print(trainer.report["verdict"])
    print(*trainer.report["notes"])

    depth = pipeline("depth-estimation", script_args.output_dir)(rooms["test"][0]["image"])["predicted_depth"]
    print(f"Predictions for the first test image: {depth.min():.2f} to {depth.max():.2f}")
    return trainer.report


if __name__ == "__main__":
    main(make_parser().parse_args())
