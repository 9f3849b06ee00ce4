"""
The page of an evolved model: try it on an image, read the report, look at the run.

This file is the `app.py` of a Gradio Space, beside `space.json`, the report, the plots and the models. It imports nothing of
smd_hf, so a Space needs no more than gradio, transformers and matplotlib. `smd-hf show` opens the same page locally.
"""

import json
import os
import statistics
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio  # pyright: ignore[reportMissingImports] (an extra)
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

CLASSIFICATION = "image-classification"
TOP = 5
POLL_SECONDS = 3
PLOTS = {
    "predictions.png": "Test images, their truth, and what parent and evolved model predict",
    "gain.png": "Gain",
    "fitness.png": "Fitness of the children by generation",
    "reliability.png": "Accuracy against confidence",
    "ensemble_size.png": "Accuracy of the ensemble by its number of members",
    "front.png": "Candidates and front by each pair of objectives",
    "calibration.png": "Share of flipped predictions by sigma",
}
REGION_COLORS = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
GREY, BLUE, ORANGE = "#5f5f5f", "#0072B2", "#D55E00"
ROWS = (
    ("accuracy", "accuracy (%)", 100, 2),
    ("nll", "NLL (nats)", 1, 4),
    ("calibration_error", "calibration error (%)", 100, 2),
)

Loader = Callable[[dict[str, Any]], tuple[Any, Any]]


class Models:
    """
    The models of a page, loaded when they are first given an image.

    Args:
        entries (`Callable`): gives the models that there are now: dicts with `title` and what `load` needs.
        load (`Callable`): from an entry to a model and its image processor, for image classification.
        task (`Callable`, *optional*, defaults to image classification): gives the task's name on the Hub, and what its pipeline takes
            beside the image, such as `candidate_labels`. A run says so when it ends. Models of other tasks than image
            classification are run by the pipeline of transformers.
    """

    def __init__(
        self,
        entries: Callable[[], list[dict[str, Any]]],
        load: Loader,
        task: Callable[[], tuple[str, dict[str, Any]]] = lambda: (CLASSIFICATION, {}),
    ):
        self.entries = entries
        self.load = load
        self.task = task
        self._loaded: dict[str, Any] = {}
        self._lock = threading.Lock()

    def predict(self, image: Any) -> list[tuple[str, Any]]:
        """
        Title and prediction of each model: probabilities by label, an image with its regions for masks and boxes, or an image
        of depths.
        """
        image = image.convert("RGB")
        task, options = self.task()
        if task == CLASSIFICATION:
            return self.classify(image)
        load = partial(load_pipeline, task)
        return [
            (entry["title"], PREDICTIONS[task](image, self._get(entry, load)(image, **options)))
            for entry in self.entries()
        ]

    def _get(self, entry: dict[str, Any], load: Callable[[dict[str, Any]], Any]) -> Any:
        with self._lock:
            if entry["title"] not in self._loaded:
                self._loaded[entry["title"]] = load(entry)
        return self._loaded[entry["title"]]

    @torch.inference_mode()
    def classify(self, image: Any) -> list[tuple[str, dict[str, float]]]:
        """Title and probabilities by label, of each model and of each member of an ensemble."""
        found = []
        for entry in self.entries():
            title = entry["title"]
            model, processor = self._get(entry, self.load)
            inputs = dict(processor(images=[image.convert("RGB")], return_tensors="pt"))
            names, several = model.config.id2label, model.config.problem_type == "multi_label_classification"
            if model.config.model_type == "smd_ensemble":
                output = model(**inputs, output_members=True)
                found.append((title, _top(output.logits[0], names, several)))
                members = enumerate(output.member_logits[0])
                found += [
                    (f"{title}, member {number + 1}", _top(logits, names, several)) for number, logits in members
                ]
            else:
                output = model(**inputs)
                found.append(
                    (title, _top(output.logits[0] if hasattr(output, "logits") else output[0][0], names, several))
                )
        return found


def build_page(folder: Path, models: Models, title: str, live: bool = False) -> gradio.Blocks:
    """
    The page.

    Args:
        folder (`Path`): holds `gain_report.json`, `children.jsonl` and the plots, as far as there are any.
        live (`bool`, *optional*, defaults to `False`): reads the files again every few seconds, as a run writes them.
    """
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {_plain(title)}")
        verdict = gradio.Markdown(verdict_of(folder))
        with gradio.Tab("Try it"):
            gradio.Markdown("Give an image, and compare what the models predict.")
            with gradio.Row():
                with gradio.Column(scale=1):
                    image = gradio.Image(type="pil", label="image", height=300, sources=["upload", "clipboard"])
                    button = gradio.Button("Predict", variant="primary")
                    if (folder / "example.png").is_file():
                        gradio.Examples([str(folder / "example.png")], inputs=image, label="an image of the test set")
                with gradio.Column(scale=3):

                    @gradio.render(inputs=image, triggers=[button.click, image.upload])
                    def show(picture: Any) -> None:
                        if picture is None:
                            gradio.Markdown("There is no image yet.")
                            return
                        results = models.predict(picture)
                        if not results:
                            gradio.Markdown("There is no evolved model yet: the run has not ended.")
                        colors = colors_of([prediction for _, prediction in results])
                        for start in range(0, len(results), 3):
                            with gradio.Row():
                                for name, prediction in results[start : start + 3]:
                                    show_prediction(name, prediction, colors)

        with gradio.Tab("Report"):
            table = gradio.Dataframe(
                report_rows(folder),
                headers=["", "parent", "evolved", "difference", "95 % interval"],
                interactive=False,
            )
            for name, heading in PLOTS.items():
                path = next((path for path in (folder / name, folder / "ensemble" / name) if path.is_file()), None)
                if path is not None:
                    gradio.Markdown(f"### {heading}")
                    gradio.Image(
                        str(path),
                        show_label=False,
                        interactive=False,
                        buttons=[],
                        width=760,
                        elem_id=name.partition(".")[0],
                    )
        with gradio.Tab("Run"):
            course = gradio.Plot(course_of(folder), label="fitness")
            generations = gradio.Dataframe(
                generation_rows(folder),
                headers=["generation", "sigma", "parent", "median child", "best child", "next parent"],
                interactive=False,
            )
        if live:
            timer = gradio.Timer(POLL_SECONDS)
            timer.tick(
                lambda: (verdict_of(folder), report_rows(folder), course_of(folder), generation_rows(folder)),
                outputs=[verdict, table, course, generations],
                show_progress="hidden",
            )
    return page


def colors_of(predictions: list[Any]) -> dict[str, str]:
    """A color for each class that a mask or a box names: the same for all models."""
    labels = dict.fromkeys(label for each in predictions if isinstance(each, tuple) for _, label in each[1])
    return {label: to_hex(REGION_COLORS[place % len(REGION_COLORS)]) for place, label in enumerate(labels)}


def show_prediction(name: str, prediction: Any, colors: dict[str, str]) -> None:
    """Puts what a model predicts on the page."""
    if isinstance(prediction, dict):
        gradio.Label(prediction, label=name, num_top_classes=TOP, min_width=200)
    elif isinstance(prediction, tuple):
        gradio.AnnotatedImage(prediction, label=name, color_map=colors, min_width=200)
    else:
        gradio.Image(prediction, label=name, interactive=False, min_width=200, buttons=[])


def _masks(image: Any, output: Any) -> Any:
    return image, [(np.asarray(each["mask"]) / 255, each["label"]) for each in output]


def _boxes(image: Any, output: Any) -> Any:
    sides = ("xmin", "ymin", "xmax", "ymax")
    found = [(tuple(int(each["box"][side]) for side in sides), each["label"]) for each in output]
    return image, found


def _depths(image: Any, output: Any) -> Any:
    depths = np.asarray(output["depth"], dtype=np.float32)
    shares = (depths - depths.min()) / max(float(np.ptp(depths)), 1e-6)
    return Image.fromarray((255 * colormaps["viridis"](shares)[..., :3]).astype(np.uint8))


def _candidates(image: Any, output: Any) -> Any:
    return {each["label"]: float(each["score"]) for each in output}


PREDICTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "image-segmentation": _masks,
    "object-detection": _boxes,
    "depth-estimation": _depths,
    "zero-shot-image-classification": _candidates,
}
"""From an image and the output of transformers' pipeline to what is shown, by task."""


def verdict_of(folder: Path) -> str:
    """The verdict of the report, or how far the run is."""
    report = read_report(folder)
    if report is not None:
        return f"**{_plain(report['verdict'])}**"
    count = len(read_generations(folder))
    return f"**{count} generation{'' if count == 1 else 's'} finished.** The comparison with the parent comes at the end of the run."


def report_rows(folder: Path) -> list[list[str]]:
    """The before/after table; empty before the end of a run."""
    report = read_report(folder)
    rows: list[list[str]] = []
    if report is None:
        return [["", "", "", "", ""]]
    for key, label, factor, digits in _metrics(report):
        change = report["difference"][key]
        values = [report["parent"][key], report["evolved"][key], change["estimate"], *change["interval"]]
        if None in values:
            rows.append([label, "-", "-", "-", "-"])
            continue
        parent, evolved, estimate, low, high = (factor * value for value in values)
        interval = f"{low:+.{digits}f} to {high:+.{digits}f}"
        rows.append([label, f"{parent:.{digits}f}", f"{evolved:.{digits}f}", f"{estimate:+.{digits}f}", interval])
    return rows


def _metrics(report: dict[str, Any]) -> list[tuple[str, str, float, int]]:
    """Key, label, factor and decimals of each metric. A report of image classification does not name them."""
    if "metrics" not in report:
        return list(ROWS)
    return [(each["key"], each["label"], each["factor"], each["decimals"]) for each in report["metrics"]]


def generation_rows(folder: Path) -> list[list[Any]]:
    """A row for each generation."""
    rows = []
    for record in read_generations(folder):
        values = [child["fitness"] for child in record["children"] if child["fitness"] is not None]
        middle, best = (f"{statistics.median(values):.4f}", f"{max(values):.4f}") if values else ("-", "-")
        parent = record["parent"]["fitness"]
        parent = "-" if parent is None else f"{parent:.4f}"
        rows.append([record["generation"] + 1, f"{record['sigma']:.4g}", parent, middle, best, record["chosen"]])
    return rows or [["", "", "", "", "", ""]]


def course_of(folder: Path) -> Figure:
    """The fitness of children and parents by generation, higher being better."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    records = read_generations(folder)
    for place, record in enumerate(records, start=1):
        values = [child["fitness"] for child in record["children"] if child["fitness"] is not None]
        shift = [place + 0.4 * (number / max(1, len(values) - 1) - 0.5) for number in range(len(values))]
        axes.scatter(shift, values, s=14, color=BLUE, alpha=0.6, label="children" if place == 1 else None)
    parents = [record["parent"]["fitness"] for record in records]
    axes.plot(range(1, len(records) + 1), parents, color=ORANGE, marker="D", label="parent")
    axes.set_xlabel("generation")
    axes.set_ylabel("fitness (higher is better)")
    axes.set_xticks(range(1, len(records) + 1) if len(records) < 20 else [])
    axes.spines[["top", "right"]].set_visible(False)
    if records:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no generation has finished yet", ha="center", transform=axes.transAxes, color=GREY)
    return figure


def read_report(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "gain_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_generations(folder: Path) -> list[dict[str, Any]]:
    """The finished generations; a line that is being written is left out."""
    records = []
    try:
        for line in (folder / "children.jsonl").read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return records


def theme() -> gradio.themes.Base:
    """With the fonts of the system: nothing is loaded from elsewhere."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _top(logits: torch.Tensor, names: dict[int, str], several: bool = False) -> dict[str, float]:
    """The most probable labels. If an image has `several`, each label has a probability of its own."""
    probabilities = logits.float().sigmoid() if several else logits.float().softmax(-1)
    values, places = probabilities.topk(min(TOP, len(probabilities)))
    return {names[int(place)]: float(value) for value, place in zip(values, places)}


def _plain(text: str) -> str:
    """Text that Markdown leaves alone."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|!" else character for character in text)


def load_saved(entry: dict[str, Any]) -> tuple[Any, Any]:
    """A model of `space.json` and its image processor, by transformers alone."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    name, options = place_of(entry)
    model = AutoModelForImageClassification.from_pretrained(name, **options).eval()
    return model, AutoImageProcessor.from_pretrained(name, **options)


def load_pipeline(task: Any, entry: dict[str, Any]) -> Any:
    """The pipeline of transformers for a model of another task than image classification."""
    from transformers import pipeline

    name, options = place_of(entry)
    return pipeline(task, model=name, device="cpu", **options)


def place_of(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the model of an entry is, and how it is loaded."""
    if "folder" not in entry:
        return entry["repo_id"], {"revision": entry.get("revision")}
    # The code in this Space's own folders was pushed with it; of other repositories, none runs.
    return str(Path(__file__).parent / entry["folder"]), {"trust_remote_code": entry.get("trust_remote_code", True)}


def main() -> None:
    """Runs the Space."""
    here = Path(__file__).parent
    settings = json.loads((here / "space.json").read_text(encoding="utf-8"))
    models = Models(lambda: settings["models"], load_saved, lambda: (settings["task"], settings["options"]))
    build_page(here, models, settings["title"]).launch(theme=theme())


if __name__ == "__main__":
    main()
