"""
One process of a run that is told to end before it comes to its end.

    torchrun --no-python python -m tests.distributed.stopped_worker FOLDER CASE
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.distributed.worker import make_trainer

RANK = int(os.environ.get("RANK", "0"))

# In another runtime than eager, which a long run chooses by itself, the hook that counts passes is not called.
LONG = dict(
    kind="resnet", decomposition="random", density=0.5, recombination="best", num_generations=1, runtime="eager"
)

CASES: dict[str, dict[str, Any]] = {
    # Generations that take a moment each: processes meet often.
    "often": LONG | dict(population_size=6, num_generations=10_000, save_strategy="no", logging_strategy="no"),
    # One generation that takes minutes: they do not meet.
    "seldom": LONG | dict(population_size=20_000),
    # A process of which the others wait for: its disk gives an image after a long time only.
    "hung": LONG | dict(population_size=6),
    "hours": LONG | dict(population_size=20_000, max_hours=5 / 3600),
}

HANGS = 15


class SlowRows(torch.utils.data.Dataset):
    """The images of a disk which hangs for a while, once."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.hung = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.hung:
            self.hung = True
            time.sleep(HANGS)
        return self.dataset[index]


def main() -> None:
    folder, case = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    trainer = make_trainer(folder / "out", "data", **CASES[case])
    if case == "hung" and RANK == 1:
        trainer.images.fitness.dataset = SlowRows(trainer.train_dataset)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == (1 if case == "hung" else 20):
            (folder / f"busy.{RANK}").touch()

    trainer.model.register_forward_hook(count)
    try:
        trainer.train()
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"stopped: {trainer.stopped}, of which process {RANK} knows")


if __name__ == "__main__":
    main()
