"""
Is an ensemble of Gauss-Newton steps better than the single step? One generation of children for each of a dozen architectures.

Gradient and curvature in the span of all children hold those of each group of them. So a generation that is cut into M groups of
children gives M models, one step each, for no further pass over the fitness images. The claim, fixed before anything was measured: the
mean of their probabilities has a lower NLL than the single step in the span of all children, on at least nine of twelve architectures.

Groups are disjoint, or each leaves one of M out. Damping and length of the steps, the same for all members, are chosen by the ensemble's
NLL on the selection images; those of the single step from the same grid, on the same images.

    python examples/studies/steps.py                            # scikit-learn's digits
    python examples/studies/steps.py --data FOLDER_OR_PARQUET
"""

import argparse
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import torch
from architectures_analysis import student
from architectures_measure import TOP_K, Ground, logits_of
from common import (
    Measurements,
    environment,
    file_name,
    markdown_table,
    panels,
    progress,
    run_plainly,
    series,
    settle,
    with_interval,
    write_results,
)
from parents import Parent, load_images
from scipy import stats

from smd_hf.metrics.comparison import measured
from smd_hf.metrics.statistics import nll
from smd_hf.remote_code.members_smd_ensemble import combine
from smd_hf.reports.plots import legend_above, save_figure
from smd_hf.scoring.evaluator import Variant
from smd_hf.search.evolution import PARENT, Evolution
from smd_hf.search.gauss_newton import DAMPING, GaussNewton, GaussNewtonSums, damped_steps
from smd_hf.search.losses import cross_entropy

LENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of steps: the mean of M steps in disjoint groups moves a logit by about one M-th of their sum."""
GRID = [(damping, length) for damping in DAMPING for length in LENGTHS]

ENSEMBLES = {"2 groups": (2, False), "4 groups": (4, False), "4 groups, each left out once": (4, True)}
WANTED = 9 / 12
"""Share of the architectures on which the claim wants a lower NLL."""


class KeepsSums(GaussNewton):
    """Gauss-Newton recombination that keeps gradient and curvature."""

    kept: GaussNewtonSums

    def propose(self, children: Sequence[Any], sums: GaussNewtonSums | None = None) -> Generator:
        assert sums is not None
        self.kept = sums
        return (yield from super().propose(children, sums))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = architectures.generation_parser(__doc__.split("\n\n")[0])
    args = made.parse_args(argv)
    settle(args, {name: value for name, value in architectures.QUICK.items() if name != "members"}, made)
    document = measure(args)
    name = f"steps_{file_name(args.data)}"
    write_results(args.output_dir, name, document, render(document))
    draw(document, args.output_dir / f"{name}.png")
    print(render(document))
    return document


def measure(args: argparse.Namespace) -> dict[str, Any]:
    images = load_images(args)
    settings = architectures.settings_of(args, images)
    store = Measurements(args.output_dir / f"steps_{file_name(args.data)}.jsonl")
    rows = {}
    with progress(len(args.architectures), "architecture") as bar:
        for name in args.architectures:
            parent = Parent(name, images, args)
            work = partial(steps, parent, args)
            rows[name] = store.get(settings | {"parent": parent.settings, "grid": GRID}, work)
            bar.update()
    return {
        "study": "steps",
        "settings": settings | {"grid": GRID},
        "environment": environment(args),
        "architectures": rows,
        "claim": {name: compared(rows, name) for name in ENSEMBLES},
    }


def steps(parent: Parent, args: argparse.Namespace) -> dict[str, Any]:
    """The single step and the ensembles of one architecture: scores, and differences of the ensembles to the step."""
    ground = architectures.ground(parent, args)
    evolution = ground.evolution("partition", args.children)
    evolution.recombination = recombination = KeepsSums(TOP_K, cross_entropy())
    evolution.step(0, ground.calibrated(evolution))
    with evolution.last_parent():
        [before] = logits_of(ground.evaluator, [PARENT], ground.test)
        step, chosen = best_of_grid(ground, evolution, recombination.kept, [range(args.children)])
        found = {
            name: best_of_grid(ground, evolution, recombination.kept, groups(args.children, *how))
            for name, how in ENSEMBLES.items()
        }
    labels, seed = ground.test.labels, ground.seed
    result: dict[str, Any] = {
        "parent": measured(before, before, labels, "parent", seed)[0],
        "step": {"scores": measured(before, step, labels, "step", seed)[0], "chosen": chosen},
    }
    for name, (logits, chosen) in found.items():
        scores, difference = measured(step, logits, labels, "ensemble", seed)
        result[name] = {"scores": scores, "chosen": chosen, "over_step": difference}
    return result


def groups(children: int, count: int, leave_one_out: bool) -> list[np.ndarray]:
    """Places of the children of each group."""
    places = np.arange(children)
    return [
        places[(places % count != group) if leave_one_out else (places % count == group)] for group in range(count)
    ]


def best_of_grid(
    ground: Ground, evolution: Evolution, sums: GaussNewtonSums, members: Sequence[Sequence[int]]
) -> tuple[np.ndarray, list[float]]:
    """Log-probabilities on the test images of the ensemble of these groups' steps, and the damping and length it took."""
    assert sums.total is not None
    solved = [damped_steps(sums.total[np.ix_(group, group)], sums.total[group, -1]) for group in members]

    def ensemble(damping: float, length: float) -> list[Variant]:
        found = []
        for group, by_damping in zip(members, solved):
            parts = [(sums.directions[place], length * float(c)) for place, c in zip(group, by_damping[damping])]
            changed = frozenset().union(*(evolution.mutation.changed_names(child) for child, _ in parts))
            found.append(Variant("step", lambda parts=parts: evolution.mutation.combination(parts), changed))
        return found

    def log_probabilities(batches: Any, *cell: float) -> np.ndarray:
        logits = torch.from_numpy(np.stack(logits_of(ground.evaluator, ensemble(*cell), batches), axis=1))
        return combine(logits.double(), torch.ones(len(members)), "mean_probabilities").numpy()

    selected = [nll(log_probabilities(ground.selection, *cell), ground.selection.labels).mean() for cell in GRID]
    best = GRID[int(np.argmin(selected))]
    return log_probabilities(ground.test, *best), list(best)


# ---- What it shows ------------------------------------------------------------------------------------------------------


def compared(rows: dict[str, Any], ensemble: str) -> dict[str, Any]:
    """The ensembles of one kind against the single steps, over all architectures."""
    keys = ("nll", "accuracy", "calibration_error")
    found = {key: [row[ensemble]["over_step"][key]["estimate"] for row in rows.values()] for key in keys}
    better = sum(value < 0 for value in found["nll"])
    return {
        "better": better,
        "worse": sum(value > 0 for value in found["nll"]),
        "sign_test_p": float(stats.binomtest(better, len(rows)).pvalue),
        **{key: student(values) for key, values in found.items()},
        "verdict": "shown" if better >= WANTED * len(rows) else "refuted",
    }


def render(document: dict[str, Any]) -> str:
    rows, settings = document["architectures"], document["settings"]

    def cell(scores: dict[str, float]) -> str:
        return f"{scores['nll']:.4f}, {100 * scores['accuracy']:.2f}"

    kinds = list(ENSEMBLES)
    body = [
        [name, cell(row["parent"]), cell(row["step"]["scores"]), *(cell(row[kind]["scores"]) for kind in kinds)]
        for name, row in sorted(rows.items())
    ]
    claims = [
        [
            name,
            f"{claim['better']} / {claim['worse']}",
            f"{claim['sign_test_p']:.3g}",
            with_interval(claim["nll"]["mean"], claim["nll"]["interval"], 4),
            with_interval(claim["accuracy"]["mean"], claim["accuracy"]["interval"], 2, 100),
            with_interval(claim["calibration_error"]["mean"], claim["calibration_error"]["interval"], 2, 100),
            claim["verdict"],
        ]
        for name, claim in sorted(document["claim"].items())
    ]
    return "\n\n".join(
        [
            f"{len(rows)} architectures on {settings['data']}, {settings['children']} children of one generation: NLL, and accuracy (%), on the test images.",
            markdown_table(["", "parent", "single step", *kinds], body),
            "**Ensembles of steps against the single step**, with Student's 95 % interval over architectures.",
            markdown_table(
                [
                    "",
                    "NLL lower / higher",
                    "sign test, p",
                    "NLL",
                    "accuracy (points)",
                    "calibration error (points)",
                    "claim",
                ],
                claims,
            ),
        ]
    )


def draw(document: dict[str, Any], path: Path) -> None:
    """How much higher the NLL of each ensemble is than the single step's."""
    names = sorted(document["architectures"])
    figure, grid = panels(1, size=(5.6, 0.8 + 0.32 * max(9, len(names))))
    axes = grid[0, 0]
    for number, kind in enumerate(ENSEMBLES, start=1):
        changes = [document["architectures"][name][kind]["over_step"]["nll"]["estimate"] for name in names]
        series(axes, number, changes, np.arange(len(names)) + 0.16 * (number - 2), kind, linestyle="none")
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("NLL over the single step's (nats)")
    legend_above(axes, columns=1)
    save_figure(figure, path)


if __name__ == "__main__":
    run_plainly(main)
