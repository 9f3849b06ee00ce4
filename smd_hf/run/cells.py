"""Cells of scoring as lines of a ledger, and back: exact to the bit, and strict about what is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.batches import ImageBatches
from ..files import write_text
from ..parallel.processes import segment
from ..scoring.record import Call, ScoredCell
from ..scoring.scores import Cell, Score
from .lines import check_keys, damaged, from_text, integer, number, read_lines, to_line, to_text

MAX_COUNT = 2**31

CELL_KEYS = {"images", "nll", "finite"}
OPTIONAL_KEYS = {"correct", "logits", "classes", "sums", "columns"}


def cell_entry(cell: Cell) -> dict[str, Any]:
    """A cell as JSON values. Floats survive exactly."""
    entry: dict[str, Any] = {"images": len(cell)}
    if cell.correct is not None:
        entry["correct"] = to_text(np.packbits(cell.correct))
    entry |= {"nll": cell.nll_sum, "finite": cell.finite}
    if cell.sums is not None:
        entry |= {"columns": cell.sums.shape[1], "sums": to_text(cell.sums)}
    if cell.logits is not None:
        entry |= {"classes": cell.logits.shape[1], "logits": to_text(cell.logits)}
    return entry


def read_cell(entry: Mapping[str, Any]) -> Cell:
    """The cell again. Raises `ValueError` for anything else."""
    images = integer(entry, "images", MAX_COUNT)
    if type(entry["finite"]) is not bool:
        raise ValueError("its finite is neither true nor false")
    if "correct" not in entry and "sums" not in entry:
        raise ValueError("it has neither correct nor sums")
    correct = None
    if "correct" in entry:
        bits = from_text(entry["correct"], "uint8", -(-images // 8))
        correct = np.unpackbits(bits, count=images).astype(bool)
    return Cell(
        correct=correct,
        nll_sum=number(entry, "nll"),
        finite=entry["finite"],
        logits=_table(entry, "logits", "classes", "float32", images),
        sums=_table(entry, "sums", "columns", "float64", images),
    )


def _table(entry: Mapping[str, Any], name: str, width: str, dtype: str, images: int) -> np.ndarray | None:
    """An array of shape `(images, width)`, if the entry has it."""
    if (name in entry) != (width in entry):
        raise ValueError(f"it has {name} without {width}, or the other way round")
    if name not in entry:
        return None
    columns = integer(entry, width, MAX_COUNT)
    return from_text(entry[name], dtype, images * columns).reshape(images, columns)


def scored_cell_entry(scored: ScoredCell) -> dict[str, Any]:
    """A cell with its place, and the labels of its batch if it has them, as JSON values."""
    place = {"variant": scored.variant, "batch": scored.batch} | cell_entry(scored.cell)
    return place if scored.labels is None else place | {"labels": to_text(scored.labels)}


def read_scored_cell(entry: Any) -> ScoredCell:
    """The cell again. Raises `ValueError` for anything else."""
    check_keys(entry, {"variant", "batch"} | CELL_KEYS, OPTIONAL_KEYS | {"labels"})
    cell = read_cell(entry)
    labels = from_text(entry["labels"], "int64", len(cell)) if "labels" in entry else None
    return ScoredCell(integer(entry, "variant", MAX_COUNT), integer(entry, "batch", MAX_COUNT), cell, labels)


@dataclass
class Finished:
    """
    What a line has: one cell, or all cells of a segment of the data and the sums over it.

    Args:
        call (`int`): the number of the scoring call in its scope.
        cells (list of [`ScoredCell`]): in any order.
        passes (`float`): what they cost, in images of full passes.
        segment (`int`, *optional*), sums (`numpy.ndarray`, *optional*): which segment, and its sums, float64.
    """

    call: int
    cells: list[ScoredCell]
    passes: float
    segment: int | None = None
    sums: np.ndarray | None = None

    def entry(self) -> dict[str, Any]:
        entry = {"call": self.call, "passes": self.passes, "cells": [scored_cell_entry(cell) for cell in self.cells]}
        if self.sums is not None:
            entry |= {"segment": self.segment, "shape": list(self.sums.shape), "sums": to_text(self.sums)}
        return entry

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "Finished":
        summed = {"segment", "shape", "sums"}
        check_keys(entry, {"call", "passes", "cells"}, summed)
        if not isinstance(entry["cells"], list):
            raise ValueError("its cells are no list")
        done = cls(integer(entry, "call", MAX_COUNT), [read_scored_cell(each) for each in entry["cells"]], 0.0)
        done.passes = number(entry, "passes")
        if not 0 <= done.passes < np.inf:
            raise ValueError("its passes are no number of images")
        if summed & entry.keys():
            check_keys(entry, {"call", "passes", "cells"} | summed)
            shape = entry["shape"]
            if not isinstance(shape, list):
                raise ValueError("its shape is no list")
            shape = [integer({"shape": side}, "shape", MAX_COUNT) for side in shape]
            done.segment = integer(entry, "segment", MAX_COUNT)
            done.sums = from_text(entry["sums"], "float64", int(np.prod(shape, dtype=object))).reshape(shape)
        return done

    def add_to(self, call: Call) -> None:
        """Adds the line to what is known of a call. If a cell is there twice, the first counts."""
        if self.segment is not None and self.sums is not None:
            if self.segment in call.totals:
                return
            call.totals[self.segment] = self.sums
        for scored in self.cells:
            call.cells.setdefault((scored.variant, scored.batch), scored.cell)
            if scored.labels is not None:
                call.labels.setdefault(scored.batch, scored.labels)
        call.passes += self.passes


def read_cells(path: Path) -> Iterator[tuple[Path, int, Finished]]:
    """
    The cells in a file, with the numbers of their lines.

    Raises:
        `SMDError`: for a line that is not as one should be, but for a torn last one.
    """
    for line, entry in read_lines(path):
        try:
            done = Finished.read(entry)
        except (ValueError, OverflowError) as error:
            raise damaged(path, line, str(error)) from None
        yield path, line, done


def misfit(
    done: Finished,
    num_variants: int,
    batches: ImageBatches,
    numbers: range,
    width: int | None,
    shape: tuple[int, ...] | None,
) -> str | None:
    """Why a line cannot belong to a scoring call; `None` if it can."""
    for scored in done.cells:
        if scored.variant >= num_variants or scored.batch not in numbers:
            return f"there is no variant {scored.variant} on batch {scored.batch} in that call"
        images = min(batches.batch_size, batches.num_images - scored.batch * batches.batch_size)
        if len(scored.cell) != images:
            return f"batch {scored.batch} holds {images} images, not {len(scored.cell)}"
        classes = None if scored.cell.logits is None else scored.cell.logits.shape[1]
        if classes != width:
            return f"it has {'no logits' if classes is None else f'logits of {classes} classes'}"
    if shape is None:
        return None if done.segment is None and len(done.cells) == 1 else "it is no single cell"
    if done.segment is None or done.sums is None or done.sums.shape != shape:
        return f"its sums are not of the shape {shape}"
    inside = [batch for batch in numbers if segment(batch, numbers) == done.segment]
    places = sorted((scored.variant, scored.batch) for scored in done.cells)
    whole = places == [(variant, batch) for variant in range(num_variants) for batch in inside]
    return None if whole and inside else f"it does not hold all of segment {done.segment}"


def write_score(path: Path, score: Score) -> None:
    """A score with all its cells, also on out-of-distribution images: a line with their number, and a line for each."""
    parts = [score] if score.ood is None else [score, score.ood]
    lines = [to_line({"cells": [len(part.cells) for part in parts]})]
    for part in parts:
        lines += [to_line(scored_cell_entry(ScoredCell(0, batch, part.cells[batch]))) for batch in sorted(part.cells)]
    write_text(path, b"".join(lines).decode())


def read_score(path: Path) -> Score | None:
    """The score again; `None` if there is no such file."""
    counts: list[int] = []
    cells: list[ScoredCell] = []
    for line, entry in read_lines(path):
        try:
            if counts:
                cells.append(read_scored_cell(entry))
                continue
            check_keys(entry, {"cells"})
            if not isinstance(entry["cells"], list) or len(entry["cells"]) not in (1, 2):
                raise ValueError("it does not count the cells that follow")
            counts = [integer({"cells": count}, "cells", MAX_COUNT) for count in entry["cells"]]
        except (ValueError, OverflowError) as error:
            raise damaged(path, line, str(error)) from None
    if not counts:
        return None
    if len(cells) != sum(counts):
        raise damaged(path, 1, f"{len(cells)} cells follow, and not {sum(counts)}")
    known, ood = cells[: counts[0]], cells[counts[0] :]
    score = Score({scored.batch: scored.cell for scored in known})
    if len(counts) == 2:
        score.ood = Score({scored.batch: scored.cell for scored in ood})
    return score
