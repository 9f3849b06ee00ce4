"""
The ledger: what a run has scored. Whatever ends the run, nothing is scored twice.

It is a folder in `output_dir`:

    header.json          what the run is: arguments that change results, data, parent
    finished.jsonl       a line for each finished generation: enough to rebuild its weights without a forward pass
    selected-00003.jsonl the score of the parent of generation 3 on the selection split
    ended.json           exists when all results are written
    cells/SCOPE/rank-00000.jsonl    what process 0 has scored of a part of the run that is not finished

A scope is a generation, the calibration of sigma, or another part of the run. Within a scope, the same scoring calls are made
in the same order, whatever is known already. So a cell is found again by scope, number of the call, variant and batch. The first
process writes the files in the folder itself, and each process writes a file for its cells. When a run is resumed, all processes
read the union of the files that any of them sees. The cells of a finished scope are dropped.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..data.batches import ImageBatches
from ..errors import SMDError
from ..files import write_text
from ..parallel.processes import Processes
from ..scoring.record import Call
from ..scoring.scores import Score
from .cells import Finished, misfit, read_cells, write_score
from .lines import LineWriter, damaged, read_lines, to_line
from .records import HEADER_NAME

FINISHED_NAME, CELLS_NAME, ENDED_NAME = "finished.jsonl", "cells", "ended.json"


class Ledger:
    """
    The ledger of one run.

    Args:
        folder (`Path`): `output_dir/ledger`.
        resumed (`bool`, *optional*, defaults to `False`): looks for what is there; otherwise the folder holds nothing but
            what this run has written.
    """

    def __init__(self, folder: Path, processes: Processes, resumed: bool = False):
        self.folder = folder
        self.processes = processes
        self.resumed = resumed
        self._scope: Path | None = None
        self._known: dict[int, list[tuple[Path, int, Finished]]] = {}
        self._calls = 0
        self._writer: LineWriter | None = None

    @classmethod
    def start(cls, folder: Path, processes: Processes, header: Mapping[str, Any]) -> "Ledger":
        """A new ledger, in place of any that is there."""
        check_folders(folder)
        # Each process removes what it sees, because machines may not share a disk.
        processes.gather(lambda: shutil.rmtree(folder, ignore_errors=True))
        processes.gather(lambda: write_header(folder, header) if processes.process_index == 0 else None)
        return cls(folder, processes)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Scoring calls inside belong to one part of the run."""
        self._scope = scope = self.folder / CELLS_NAME / name
        self._calls = 0
        self._known = self._read(scope) if self.resumed else {}
        try:
            yield
        finally:
            self._scope, self._known = None, {}
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def call(
        self,
        num_variants: int,
        batches: ImageBatches,
        numbers: range,
        width: int | None,
        shape: tuple[int, ...] | None,
    ) -> Call:
        """
        The next scoring call of the scope.

        Args:
            width (`int`, *optional*): of the predictions, if they are kept.
            shape (`tuple`, *optional*): of the sums of a segment, if there are any.

        Raises:
            `SMDError`: if what is known of it does not fit.
        """
        scope = self._scope
        if scope is None:
            return Call()
        number = self._calls
        self._calls += 1
        call = Call(lambda *done: self._open(scope).write(Finished(number, *done).entry()))
        for path, line, done in self._known.pop(number, ()):
            problem = misfit(done, num_variants, batches, numbers, width, shape)
            if problem is not None:
                raise damaged(path, line, problem)
            done.add_to(call)
        return call

    def drop(self, *names: str) -> None:
        """Removes the cells of finished scopes, on every process that sees them."""
        for name in names:
            shutil.rmtree(self.folder / CELLS_NAME / name, ignore_errors=True)

    def finish(self, generation: int, entry: Mapping[str, Any], selected: Score) -> None:
        """
        Ends a generation: from here on it is known by its line alone.

        Args:
            generation (`int`): from 0.
            selected ([`Score`]): of the next parent on the selection split.
        """

        def write() -> None:
            if self.processes.process_index > 0:
                return
            write_score(self.folder / selected_name(generation + 1), selected)
            self.write_finished([entry])
            (self.folder / selected_name(generation)).unlink(missing_ok=True)
            (self.folder / ENDED_NAME).unlink(missing_ok=True)

        self.processes.gather(write)

    def write_finished(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines of finished generations. They are on the disk when this returns."""
        writer = LineWriter(self.folder / FINISHED_NAME)
        try:
            for entry in entries:
                writer.write(entry)
            writer.sync()
        finally:
            writer.close()

    def end(self, keep: Sequence[str] = ()) -> None:
        """Removes all cells but those of the scopes in `keep`, because all results are written."""
        cells = self.folder / CELLS_NAME

        def look() -> set[str]:
            if self.processes.process_index == 0:
                write_text(self.folder / ENDED_NAME, "{}\n")
            return {path.name for path in cells.glob("*")}

        # All look before one removes: a folder that disappears while it is read is an error.
        self.drop(*set().union(*self.processes.gather(look)).difference(keep))
        with suppress(OSError):  # of scopes that are kept
            cells.rmdir()

    def _open(self, scope: Path) -> LineWriter:
        if self._writer is None:
            self._writer = LineWriter(scope / f"rank-{self.processes.process_index:05d}.jsonl")
        return self._writer

    def _read(self, scope: Path) -> dict[int, list[tuple[Path, int, Finished]]]:
        """All lines of the scope by the number of their call, the same on every process."""
        files: dict[tuple[str, int], Path] = {}

        def look() -> set[tuple[str, int]]:
            check_folders(self.folder, self.folder / CELLS_NAME, scope)
            files.update({(path.name, path.lstat().st_size): path for path in scope.glob("rank-*.jsonl")})
            return set(files)

        # A file that several processes see is read by the first of them.
        seen = self.processes.gather(look)
        mine = set(files).difference(*seen[: self.processes.process_index])
        known: dict[int, list[tuple[Path, int, Finished]]] = {}
        for part in self.processes.gather(lambda: [line for key in sorted(mine) for line in read_cells(files[key])]):
            for path, line, done in part:
                known.setdefault(done.call, []).append((path, line, done))
        return known


def check_folders(*folders: Path) -> None:
    """Refuses links: a run would write or remove files in another place."""
    for folder in folders:
        if folder.is_symlink():
            raise SMDError(f"'{folder}' is a link, where a run keeps a folder of its own. Remove the link.")


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / HEADER_NAME, to_line(header).decode())


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header; `None` if there is none."""
    check_folders(folder)
    return next((header for _, header in read_lines(folder / HEADER_NAME)), None)


def selected_name(generation: int) -> str:
    return f"selected-{generation:05d}.jsonl"
