"""
What bfloat16 does to children: is their order the same, and what does a Gauss-Newton step see of them?

The same children, scored in float32 and in bfloat16 by one runtime, for several sigmas. `order` is Spearman's rank correlation of their NLL;
`direction` is the mean cosine of what a child changes in the logits, by which a Gauss-Newton step knows it. What whole runs gain in each
precision is measured by `imagenet.py --set precision=bf16`.

    python examples/studies/precision.py --model MODEL --data FOLDER_OR_PARQUET
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import (
    DIGITS,
    Measurements,
    data_key,
    environment,
    file_name,
    image_batches,
    load_data,
    make_parser,
    markdown_table,
    progress,
    public_name,
    run_plainly,
    settle,
    variants,
    write_results,
)
from scipy.stats import spearmanr

from smd_hf.data.batches import ImageBatches
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.scoring.scores import Score
from smd_hf.search.fitness_scorer import PARENT
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition

QUICK = {"sigmas": [0.05], "children": 4, "images": 16, "batch_size": 8}


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--model", required=True, help="A model id on the Hub, or the folder of a checkpoint.")
    made.add_argument("--trust_remote_code", action="store_true", help="The model brings its own code.")
    made.add_argument("--data", default=DIGITS, help="As in window.py.")
    made.add_argument("--sigmas", type=float, nargs="+", default=[0.0125, 0.025, 0.05, 0.1, 0.2])
    made.add_argument("--children", type=int, default=48, help="Of the norms, in blocks.")
    made.add_argument(
        "--images", type=int, default=675, help="Images of the training split, drawn evenly over the classes."
    )
    made.add_argument("--batch_size", type=int, default=75, help="Images a batch.")
    made.add_argument("--runtime", default="openvino", choices=["openvino", "eager"])
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    model = load_model(args.model, trust_remote_code=args.trust_remote_code, dtype="float32").to(args.device)
    processor = load_image_processor(args.model, model=model, trust_remote_code=args.trust_remote_code)
    images, _ = load_data(args.data, max_train=args.images, seed=args.seed)
    batches = image_batches(model, processor, images, batch_size=args.batch_size)
    about = {
        "model": public_name(args.model),
        "weights": weights_hash(model)[:16],
        "data": public_name(args.data),
        "data_key": data_key(images),
        "images": len(images),
        "children": args.children,
        "runtime": args.runtime,
        "seed": args.seed,
    }
    name = f"precision_{file_name(args.model)}"
    store = Measurements(args.output_dir / f"{name}.jsonl")
    choice = RuntimeChoice(model, args.runtime, "bf16", batch_size=args.batch_size)
    evaluator = Evaluator(model, torch.device(args.device), choice=choice)
    space = parameter_space(model, ["norms"])
    mutation = Mutation(model, make_decomposition("blocks", space, args.children, None, args.seed), args.seed)
    rows = []
    with progress(len(args.sigmas), "sigma") as bar:
        for sigma in args.sigmas:
            rows.append(store.get(about | {"sigma": sigma}, lambda s=sigma: compared(evaluator, mutation, batches, s)))
            bar.update()
    document = {"study": "precision", "about": about, "environment": environment(args), "rows": rows}
    write_results(args.output_dir, name, document, render(document))
    print(render(document))
    return document


def compared(evaluator: Evaluator, mutation: Mutation, batches: ImageBatches, sigma: float) -> dict[str, float]:
    """One generation of children in both precisions."""
    family = [PARENT, *variants(mutation, mutation.children(0, sigma))]
    exact, coarse = (evaluator.score(family, batches, keep_logits=True, coarse=each) for each in (False, True))
    return {
        "sigma": sigma,
        "order": float(spearmanr(*([score.nll for score in scores[1:]] for scores in (exact, coarse)))[0]),
        "direction": float(np.mean([cosine(*pair) for pair in zip(changes(exact), changes(coarse))])),
        "parent": float(np.abs(coarse[0].logits - exact[0].logits).max() / np.abs(exact[0].logits).max()),
        "spread": float(np.std([score.nll for score in exact[1:]])),
    }


def changes(scores: Sequence[Score]) -> list[np.ndarray]:
    """What each child changes in the logits, but for what moves all classes of an image."""
    found = [child.logits - scores[0].logits for child in scores[1:]]
    return [each - each.mean(-1, keepdims=True) for each in found]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum() / max(1e-30, np.linalg.norm(first) * np.linalg.norm(second)))


def render(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    about = document["about"]
    rows = [
        [f"{row['sigma']:g}", f"{row['order']:.3f}", f"{row['direction']:.3f}", f"{row['spread']:.4f}"]
        for row in document["rows"]
    ]
    return "\n\n".join(
        [
            f"{about['model']} on {about['images']} images of {about['data']}: {about['children']} children of the norms in {about['runtime']}, in "
            f"float32 and in bfloat16. The parent's logits differ by {document['rows'][0]['parent']:.3f} of the largest.",
            markdown_table(["sigma", "order", "direction", "standard deviation of NLL"], rows),
        ]
    )


if __name__ == "__main__":
    run_plainly(main)
