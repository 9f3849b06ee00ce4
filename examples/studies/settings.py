"""
On which numbers the preset `adapt` stands: how many children, what share of them scales, on how many images, at which sigma.

Parents are trained here on clean images and evolved on others that went through a small JPEG file. The preset has the numbers
that this study chose, on images and models that no other study or example is about, by a rule that was fixed before it ran.

A checkpoint with many classes may stand beside them: with `--checkpoint`, it is evolved on two thirds of some images and
tested on the others.

    python examples/studies/settings.py --data FASHION_MNIST MNIST --checkpoint MODEL --checkpoint_data IMAGES
"""

import argparse
import copy
import io
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from architectures import PARENTS
from common import (
    Measurements,
    data_key,
    environment,
    evolution_arguments,
    image_batches,
    load_data,
    make_parser,
    markdown_table,
    panels,
    progress,
    public_name,
    run_plainly,
    series,
    settle,
    write_results,
)
from datasets import Dataset
from parents import Images, Parent
from PIL import Image

from smd_hf import EvolutionTrainer
from smd_hf.arguments.recipes import read_recipe
from smd_hf.data.labels import label_values, stratified_split
from smd_hf.data.rows import find_columns
from smd_hf.errors import SMDError
from smd_hf.metrics.statistics import Scores
from smd_hf.reports.plots import save_figure
from smd_hf.scoring.evaluator import Evaluator

CHOSEN_HERE = ("population_size", "scaling_share", "fitness_samples_per_generation", "sigma")
FIXED = {name: value for name, value in read_recipe("adapt").items() if name not in CHOSEN_HERE}

SETTINGS = (
    "64:0.6:1125:0.05", "96:0:1150:0.05", "96:0.3:975:0.05", "96:0.6:825:0.05",
    "144:0.6:540:0.05", "240:0.6:330:0.05", "352:0.6:225:0.05",
)  # fmt: skip
"""Of about equal cost. The passes that each takes are in the table."""

FEWER = {"num_generations": 3, "precision": "auto"}
"""Of a checkpoint's runs, which cost far more than those of the small parents."""

SENT = {"side": 20, "quality": 10}
"""The shift: images are made this small (pixels), sent as JPEG of this quality, and made as large as before."""

LEAST = 0.5
"""A parent trained here that reads fewer of the shifted images has met no shift but a collapse, and is left out."""

GONE = {"errors": "errors that are gone (%)", "nll": "NLL that is gone (%)"}
"""What a setting is judged by, as the figure says it."""

QUICK = {
    "architectures": ["resnet"], "parent_images": 40, "epochs": 1, "train_images": 40, "test_images": 18,
    "settings": ["4:0:12:0.05", "4:0.5:12:0.05", "8:0:6:0.1"], "seeds": [0],
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--data", nargs="+", required=True, help="Folders or data sets that `datasets` reads.")
    made.add_argument(
        "--architectures", nargs="+", default=["resnet", "efficientnet", "vit", "mixer"], help="Which parents."
    )
    made.add_argument("--parent_images", type=int, default=15_000, help="Clean images that a parent is trained on.")
    made.add_argument("--epochs", type=int, default=8, help="Of the parents' training.")
    made.add_argument("--train_images", type=int, default=5000, help="Shifted images to evolve on: one pass.")
    made.add_argument("--test_images", type=int, default=5000, help="Shifted images that tell settings apart.")
    made.add_argument("--checkpoint", help="A parent more, as it comes: a folder or an id of the Hub.")
    made.add_argument("--checkpoint_data", help="Its images: a Parquet file, a folder or a data set of the Hub.")
    made.add_argument(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        metavar="CHILDREN:SHARE:IMAGES:SIGMA",
        help="What is compared.",
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="Of the runs of each.")
    made.add_argument("--batch_size", type=int, default=225, help="Images a batch of scoring.")
    made.add_argument("--parents_dir", type=Path, default=PARENTS, help="Keeps trained parents.")
    made.set_defaults(imagenet=None)
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    if (args.checkpoint is None) != (args.checkpoint_data is None):
        made.error("--checkpoint and --checkpoint_data go together: give both or neither.")
    settle(args, QUICK, made)
    document = measure(args, Measurements(args.output_dir / "settings_adapt.jsonl"))
    write_results(args.output_dir, "settings_adapt", document, render(document))
    draw(document, args.output_dir / "settings_adapt.png")
    print(render(document))
    return document


# ---- Measuring --------------------------------------------------------------------------------------------------------


def sent_small(image: Image.Image) -> Image.Image:
    """The image as it looks after it was sent as `SENT` says."""
    file = io.BytesIO()
    image.resize((SENT["side"], SENT["side"]), Image.Resampling.BILINEAR).save(file, "JPEG", quality=SENT["quality"])
    return Image.open(file).convert(image.mode).resize(image.size, Image.Resampling.BILINEAR)


def load_images(data: str, args: argparse.Namespace) -> Images:
    """Disjoint: clean images to train a parent on, shifted ones to evolve on and to test on."""
    wanted = args.parent_images + args.train_images
    whole, clean = load_data(data, max_train=wanted, max_test=args.test_images, seed=args.seed)
    if len(whole) < wanted:
        raise SMDError(f"'{data}' has {len(whole):,} training images, and {wanted:,} are needed. Ask for fewer.")
    column, labels = find_columns(whole)
    parent, evolve_on = stratified_split(label_values(whole, labels), args.train_images / wanted, args.seed)

    def shifted(dataset: Dataset) -> Dataset:
        return dataset.map(lambda row: {column: sent_small(row[column])}, features=dataset.features)

    return Images(whole.select(parent), shifted(whole.select(evolve_on)), shifted(clean), clean)


def load_checkpoint_images(args: argparse.Namespace) -> Images:
    """Of the training split: two thirds to evolve on, the others to test on. A test split is not looked at."""
    whole, _ = load_data(args.checkpoint_data, seed=args.seed)
    labels = label_values(whole, find_columns(whole)[1])
    evolve_on, test = (whole.select(rows) for rows in stratified_split(labels, 1 / 3, args.seed))
    return Images(None, evolve_on, test, test)


@dataclass(frozen=True)
class Setting:
    """What the preset is to have: `population_size`, `scaling_share`, `fitness_samples_per_generation` and `sigma`."""

    children: int
    share: float
    images: int
    sigma: float

    @classmethod
    def read(cls, text: str) -> "Setting":
        """
        From `CHILDREN:SHARE:IMAGES:SIGMA`.

        Raises:
            `SMDError`: if it is none.
        """
        try:
            children, share, images, sigma = text.split(":")
            return cls(int(children), float(share), int(images), float(sigma))
        except ValueError:
            raise SMDError(
                f"'{text}' is no setting. Expected CHILDREN:SHARE:IMAGES:SIGMA, such as {SETTINGS[0]}."
            ) from None

    def __str__(self) -> str:
        return f"{self.children}, {self.share:g}, {self.images:,}, {self.sigma:g}"


class Task:
    """A parent and its shifted images, and what its runs have beside the settings."""

    def __init__(
        self, data: str, parent: str, images: Images, args: argparse.Namespace, fixed: dict[str, Any] = FIXED
    ):
        self.args, self.images, self.fixed = args, images, fixed
        self.parent = Parent(parent, images, args)
        self.is_trained = images.parent is not None
        self.name = f"{public_name(parent)}, {public_name(data)}"
        self.settings = {
            "task": self.name,
            "parent": self.parent.settings,
            "data_keys": [data_key(images.evolve_on), data_key(images.test)],
            "sent": SENT if self.is_trained else None,
            "fixed": fixed,
            "batch_size": args.batch_size,
        }

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        return self.parent.load()

    def parent_scores(self) -> dict[str, float]:
        model, processor = self.loaded
        batches = image_batches(model, processor, self.images.test, batch_size=self.args.batch_size)
        scores = Scores.from_logits(Evaluator(model, model.device).logits(batches), batches.labels)
        return {"accuracy": scores.accuracy, "nll": scores.nll}

    def run(self, setting: Setting, seed: int) -> dict[str, float]:
        """What one run brought, and cost in passes over the images to evolve on."""
        model, processor = self.loaded
        with tempfile.TemporaryDirectory() as folder:
            trainer = EvolutionTrainer(
                copy.deepcopy(model),
                evolution_arguments(
                    folder,
                    self.args,
                    **self.fixed,
                    population_size=setting.children,
                    scaling_share=setting.share,
                    fitness_samples_per_generation=setting.images,
                    sigma=setting.sigma,
                    seed=seed,
                    logging_strategy="no",
                ),
                train_dataset=self.images.evolve_on,
                eval_dataset=self.images.test,
                processing_class=processor,
            )
            trainer.train()
        evolved, passes = trainer.report["evolved"], trainer.run.full_passes / len(self.images.evolve_on)
        return {"accuracy": evolved["accuracy"], "nll": evolved["nll"], "passes": passes}


def measure(args: argparse.Namespace, store: Measurements) -> dict[str, Any]:
    """All runs, and the setting that the rule chooses."""
    settings = [Setting.read(text) for text in args.settings]
    tasks = [
        Task(data, architecture, images, args)
        for data in args.data
        for images in [load_images(data, args)]
        for architecture in args.architectures
    ]
    if args.checkpoint is not None:
        as_it_comes = argparse.Namespace(**vars(args) | {"imagenet": [args.checkpoint]})
        images = load_checkpoint_images(args)
        tasks.append(Task(args.checkpoint_data, args.checkpoint, images, as_it_comes, FIXED | FEWER))
    rows: dict[str, dict[str, Any]] = {}
    left_out = []
    with progress(len(tasks) * len(settings) * len(args.seeds), "run") as bar:
        for task in tasks:
            bar.set_description(task.name)
            parent = store.get(task.settings | {"what": "parent"}, task.parent_scores)
            if task.is_trained and parent["accuracy"] < LEAST:
                left_out.append(task.name)
                bar.update(len(settings) * len(args.seeds))
                continue
            runs = []
            for setting, seed in product(settings, args.seeds):
                key = task.settings | {"setting": str(setting), "seed": seed}
                runs.append(store.get(key, partial(task.run, setting, seed)))
                bar.update()
            images = {"train": len(task.images.evolve_on), "test": len(task.images.test)}
            evolved = means_of_seeds(runs, len(args.seeds))
            rows[task.name] = {"trained": task.is_trained, "images": images, "parent": parent, "evolved": evolved}
    if not rows:
        raise SMDError(f"No parent reads {LEAST:.0%} of the shifted images. Train them on more, or give other images.")
    summary = [summarise(rows.values(), str(setting), number) for number, setting in enumerate(settings)]
    return {
        "study": "settings",
        "fixed": FIXED,
        "of_checkpoints": FEWER,
        "sent": SENT,
        "images": {"parent": args.parent_images, "train": args.train_images, "test": args.test_images},
        "seeds": args.seeds,
        "environment": environment(args),
        "tasks": rows,
        "left_out": left_out,
        "summary": summary,
        "chosen": max(summary, key=lambda each: each["errors"] + each["nll"])["setting"],
    }


def means_of_seeds(runs: Sequence[dict[str, float]], seeds: int) -> list[dict[str, float]]:
    """Of runs one setting after another, each with all seeds: one entry a setting."""
    groups = [runs[start : start + seeds] for start in range(0, len(runs), seeds)]
    return [{name: fmean(run[name] for run in group) for name in group[0]} for group in groups]


def summarise(rows: Collection[dict[str, Any]], setting: str, number: int) -> dict[str, Any]:
    """Means over all tasks of what a setting brought: points gained, and which share of the errors and of the NLL is gone."""
    pairs = [(row["parent"], row["evolved"][number]) for row in rows]
    gains = [evolved["accuracy"] - parent["accuracy"] for parent, evolved in pairs]
    return {
        "setting": setting,
        "points": 100 * fmean(gains),
        "errors": fmean(gain / (1 - parent["accuracy"]) for gain, (parent, _) in zip(gains, pairs)),
        "nll": fmean(1 - evolved["nll"] / parent["nll"] for parent, evolved in pairs),
        "passes": fmean(evolved["passes"] for _, evolved in pairs),
    }


# ---- Table and figure -------------------------------------------------------------------------------------------------


def render(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    images, sent, left_out = document["images"], document["sent"], document["left_out"]
    tasks = dict(sorted(document["tasks"].items()))  # the JSON's order
    trained = [row for row in tasks.values() if row["trained"]]
    others = {name: row for name, row in tasks.items() if not row["trained"]}
    return "\n\n".join(
        [
            f"{len(trained)} parents, each trained on {images['parent']:,} clean images, then evolved on "
            f"{images['train']:,} that were sent as JPEG files of {sent['side']} pixels and quality {sent['quality']}. Means over "
            f"the parents and {len(document['seeds'])} seed(s), on {images['test']:,} test images each."
            + "".join(
                f" One more as it comes: {name}, evolved on {row['images']['train']:,} images for "
                f"{FEWER['num_generations']} generations and tested on {row['images']['test']:,}."
                for name, row in others.items()
            )
            + f" Left out, as they read fewer than {LEAST:.0%}: {'; '.join(left_out)}." * bool(left_out),
            markdown_table(
                [
                    "children, share that scales, images, sigma",
                    "points gained",
                    "errors gone (%)",
                    "NLL gone (%)",
                    "passes",
                ],
                [
                    [
                        each["setting"],
                        f"{each['points']:+.2f}",
                        *(f"{100 * each[what]:.1f}" for what in GONE),
                        f"{each['passes']:.1f}",
                    ]
                    for each in document["summary"]
                ],
            ),
            f"Chosen, by the sum of the shares of errors and of NLL that are gone: {document['chosen']}.",
            "**Accuracy (%) and NLL** of each parent, and of what became of it.",
            markdown_table(
                ["", *tasks],
                [
                    [name, *(f"{100 * each['accuracy']:.2f}, {each['nll']:.3f}" for each in scores)]
                    for name, *scores in zip(
                        ["parent", *(each["setting"] for each in document["summary"])],
                        *([row["parent"], *row["evolved"]] for row in tasks.values()),
                    )
                ],
            ),
        ]
    )


def draw(document: dict[str, Any], path: Path) -> None:
    """What is gone of errors and of NLL, by setting."""
    figure, grid = panels(2, size=(4.6, 0.8 + 0.26 * len(document["summary"])), sharey=True)
    names = [each["setting"] for each in document["summary"]]
    for number, (axes, (what, label)) in enumerate(zip(grid[0], GONE.items()), start=1):
        values = [100 * each[what] for each in document["summary"]]
        series(axes, number, values, range(len(names)), label, linestyle="none")
        axes.set_xlabel(label)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    grid[0][0].set_ylabel("children, share that scales, images, sigma")
    save_figure(figure, path)


if __name__ == "__main__":
    run_plainly(main)
