"""What the studies share: images by one argument, finished measurements on disk, packed answers, tables and figures."""

import argparse
import base64
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from smd_hf.arguments.evolution_arguments import EvolutionArguments
from smd_hf.cli.digits import digit_splits
from smd_hf.data.alignment import align_labels
from smd_hf.data.batches import ImageBatches
from smd_hf.data.labels import label_names, label_values
from smd_hf.data.pixels import codec_for
from smd_hf.data.rows import ImageCollator, find_columns
from smd_hf.data.splits import load_splits
from smd_hf.errors import SMDError
from smd_hf.files import check_output_dir, write_json, write_lines, write_text
from smd_hf.models.inputs import input_names
from smd_hf.models.load import num_channels
from smd_hf.reports.plots import style_axes
from smd_hf.scoring.evaluator import Variant
from smd_hf.search.mutation import Child, Mutation

RESULTS = Path(__file__).parent / "results"
DIGITS = "digits"
PACKAGES = ("torch", "transformers", "timm", "numpy")

COLORS = ("#5f5f5f", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's, as in `smd_hf.reports.plots`: for series that differ in marker too."""

MARKERS = ("s", "o", "^", "D", "v", "P", "X")


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all studies have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="Receives measurements, table and figures.")
    parser.add_argument(
        "--quick", action="store_true", help="The smallest form, for a look: seconds, not to be cited."
    )
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda.")
    parser.add_argument("--seed", type=int, default=0, help="Of images, parents, children and intervals.")
    return parser


def settle(args: argparse.Namespace, quick: dict[str, Any], parser: argparse.ArgumentParser) -> None:
    """
    Puts the values of a quick run in the place of what was left at its default, sets the number of threads, and sees that
    the folder of results can be written to.

    Raises:
        `SMDError`: if it cannot.
    """
    for name, value in quick.items() if args.quick else ():
        if getattr(args, name) == parser.get_default(name):
            setattr(args, name, value)
    torch.set_num_threads(args.threads)
    datasets.disable_progress_bars()
    check_output_dir(args.output_dir)


# ---- Images and models ----------------------------------------------------------------------------------------------


def load_data(
    data: str, *, max_train: int | None = None, max_test: int | None = None, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    The training and the test split of what `--data` names.

    Args:
        data (`str`): `"digits"` (scikit-learn's, shifted as in the demo), a folder or data set that `load_dataset` reads, or
            a Parquet file, of which 15 % become the test split.
        max_train, max_test (`int`, *optional*): stratified subsets of this size.
        seed (`int`, *optional*, defaults to 0): decides on the subsets.

    Raises:
        `SMDError`: for data that are not there or hold no images.
    """
    limits = {"max_train_samples": max_train, "max_eval_samples": max_test, "seed": seed}
    if data != DIGITS:
        path = Path(data).expanduser()
        source = {"train_file": str(path)} if path.is_file() else {"dataset_name": data}
        return load_splits(**source, **limits)
    splits = digit_splits(seed)
    return tuple(
        split if limit is None else split.select(range(min(limit, len(split))))
        for split, limit in ((splits["train"], max_train), (splits["test"], max_test))
    )


def image_batches(
    model: PreTrainedModel,
    processor: Any,
    dataset: datasets.Dataset,
    indices: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 128,
) -> ImageBatches:
    """
    Images as the engine takes them, kept in memory, with labels in the model's numbering.

    Raises:
        `SMDError`: if the data set's classes are not the model's.
    """
    image_column, label_column = find_columns(dataset)
    names, observed = label_names(dataset, label_column), label_values(dataset, label_column)
    alignment = align_labels(names, observed, model.config.id2label, head_init="keep", split="test")
    collator = ImageCollator(
        processor,
        image_column,
        label_column,
        mapping=alignment.mapping,
        channels=num_channels(model),
        names=alignment.names,
        input_names=input_names(model),
    )
    return ImageBatches(dataset, collator, batch_size, indices, cache_bytes=10**12, codec=codec_for(processor))


def evolution_arguments(folder: str, args: argparse.Namespace, **options: Any) -> EvolutionArguments:
    """
    A run's arguments, which leave the progress bar to the study and keep no checkpoint, on its device in its batches. Without a
    preset among the options, they say all that differs from one generation of children of all weights.
    """
    return EvolutionArguments(
        folder,
        **{"preset": "smd", "recombination": "auto", "ensemble_size": 0, **options},
        per_device_eval_batch_size=args.batch_size,
        use_cpu=torch.device(args.device).type == "cpu",
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        log_level="error",
    )


def variants(mutation: Mutation, children: Sequence[Child]) -> list[Variant]:
    """Children as the engine takes them."""
    return [
        Variant(f"child {child.index}", lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in children
    ]


def data_key(dataset: datasets.Dataset) -> str:
    """A hash of images and labels as they are stored (of image files, names and sizes): the same wherever they lie."""
    image_column, label_column = find_columns(dataset)
    digest = hashlib.sha256()
    for row in dataset.cast_column(image_column, datasets.Image(decode=False)):
        stored, label = row[image_column], row[label_column]
        if stored["bytes"] is None:
            digest.update(f"{Path(stored['path']).name}\0{os.path.getsize(stored['path'])}\0".encode())
        else:
            digest.update(hashlib.sha256(stored["bytes"]).digest())
        digest.update(f"{label}\0".encode())
    return digest.hexdigest()[:16]


def public_name(name: str) -> str:
    """A model's or data set's name without the path to it, as results show it; ids of the Hub stay whole."""
    path = Path(name).expanduser().resolve()
    if not path.exists():
        return name
    return path.name if path.is_dir() else path.stem


def file_name(name: str) -> str:
    """A name as a part of file names."""
    return public_name(name).replace("/", "-").replace(" ", "-")


# ---- Measurements ---------------------------------------------------------------------------------------------------


class Measurements:
    """
    Finished measurements as JSON, one a line, by the settings that they were made with.

    A study that was stopped, even in the middle of a line, goes on where it was.

    Args:
        path (`Path`): of the file; the first measurement makes it.

    Attributes:
        measured (`int`): how many measurements were made, not found, since the file was opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self.measured = 0
        self._found: dict[str, Any] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            write_text(path, "".join(whole))
        for line in whole:
            record = json.loads(line)
            self._found[_key(record["settings"])] = record["result"]

    def __contains__(self, settings: dict[str, Any]) -> bool:
        return _key(settings) in self._found

    def get(self, settings: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """
        The result that was measured with these settings, now if it never was.

        Args:
            settings (`dict`): JSON values: all that the result depends on, and no path.
            measure (`Callable`): gives the result as JSON values; no NaN or infinity.
        """
        key = _key(settings)
        if key not in self._found:
            result = measure()
            write_lines(self.path, [{"settings": settings, "result": result}], mode="a")
            self.measured += 1
            self._found[key] = json.loads(json.dumps(result))
        return self._found[key]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, allow_nan=False)


def progress(total: int, unit: str) -> tqdm:
    """The progress bar of a study: `with progress(n, "cell") as bar: ... bar.update()`."""
    return tqdm(total=total, unit=unit, dynamic_ncols=True)


def pack(answers: np.ndarray) -> str:
    """A bool array of shape `(n,)` as text: one bit each, base64."""
    return base64.b64encode(np.packbits(np.asarray(answers, dtype=bool)).tobytes()).decode()


def unpack(text: str, n: int) -> np.ndarray:
    """The bool array of shape `(n,)` that [`pack`] was given."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(bool)


# ---- Statistics -----------------------------------------------------------------------------------------------------


def interval(samples: np.ndarray, confidence: float = 0.95) -> list[float] | None:
    """
    The percentile interval of bootstrap samples of shape `(resamples,)`; `None` where more than one in twenty is NaN, so
    that the statistic often has no value.
    """
    finite = samples[np.isfinite(samples)]
    if len(finite) < 0.95 * len(samples):
        return None
    return [float(end) for end in np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that one false finding among all has their level (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty(len(p))
    result[order] = adjusted
    return result.tolist()


def verdict(estimate: float | None, bounds: Sequence[float] | None) -> str:
    """`"shown"` for a claim that a number is above 0 and its interval is, `"refuted"` where this is below, else `"not shown"`."""
    if estimate is None or bounds is None:
        return "not shown"
    low, high = bounds
    return "shown" if low > 0 else "refuted" if high < 0 else "not shown"


# ---- Table and figures ----------------------------------------------------------------------------------------------


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Device and versions, for the results."""
    return {"device": args.device, "threads": args.threads, "versions": {name: version(name) for name in PACKAGES}}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(
    estimate: float | None, bounds: Sequence[float] | None, digits: int = 2, factor: float = 1, signed: bool = True
) -> str:
    """`+1.20 (+0.80 to +1.60)`, without signs where not `signed`; `-` for no number, and in the place of no interval."""
    if estimate is None:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    ends = "-" if bounds is None else " to ".join(f"{factor * end:{form}}" for end in bounds)
    return f"{factor * estimate:{form}} ({ends})"


def write_results(folder: Path, name: str, document: dict[str, Any], text: str) -> None:
    """Writes `NAME.json` and `NAME.md`."""
    write_json(folder / f"{name}.json", document)
    write_text(folder / f"{name}.md", text.rstrip() + "\n")


def panels(columns: int, rows: int = 1, size: tuple[float, float] = (4.6, 3.6), **sharing: Any) -> tuple[Figure, Any]:
    """
    A figure in the package's style, to be saved by `smd_hf.reports.plots.save_figure`.

    Args:
        columns, rows (`int`): how many panels.
        size (`tuple`): of one panel, in inches.
        sharing: `sharex`, `sharey`.

    Returns:
        The figure, and its axes as an array of shape `(rows, columns)`.
    """
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **sharing)
    for axes in grid.flat:
        style_axes(axes)
    return figure, grid


def series(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], label: str, **style: Any) -> None:
    """One line of a figure, in the colour and with the marker of its number."""
    style = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.5} | style
    axes.plot(x, y, label=label, **style)


def run_plainly(main: Callable[[], Any]) -> None:
    """Runs a study as a command: what a user can mend is printed as one paragraph, with exit status 2."""
    try:
        main()
    except SMDError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
