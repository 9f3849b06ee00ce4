"""
One process of runs of tasks over several: does what it is told to, one after another.

    torchrun --standalone --nproc_per_node 2 --module tests.distributed.task_worker FOLDER TASK-SPREAD ...

The checkpoint is FOLDER/../../TASK, and the run is left in FOLDER/../TASK-SPREAD. As killed:TASK-SPREAD, the last process is killed when it has written some of its scores;
as resumed:TASK-SPREAD, a run goes on.
"""

import os
import sys
from pathlib import Path

import torch

from tests.distributed.worker import RANK, kill_after
from tests.tasks.each import ALL

KILLED_AFTER = 2


def be_killed() -> None:
    """Kills this process when it has written so many lines of cells, if it is the last."""
    if int(os.environ.get("WORLD_SIZE", "1")) - 1 == RANK:
        kill_after(KILLED_AFTER)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for name in names:
        what, _, run = name.rpartition(":")
        if what == "killed":
            be_killed()
        task, _, spread = run.partition("-")
        trainer = ALL[task].trainer(folder.parent / run, folder.parents[1] / task, spread=spread)
        trainer.train(resume_from_checkpoint=what == "resumed")


if __name__ == "__main__":
    main()
