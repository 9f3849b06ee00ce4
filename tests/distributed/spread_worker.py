"""
One process of several that meet a few times, and end at once.

    torchrun --standalone --nproc_per_node 4 --module tests.distributed.spread_worker FOLDER
"""

import atexit
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from smd_hf.parallel.processes import Processes


def main() -> None:
    note = Path(sys.argv[1]) / f"group.{os.environ['RANK']}"
    # What is registered first is called last.
    atexit.register(lambda: note.write_text(str(torch.distributed.is_initialized())))
    state = PartialState(cpu=True)
    processes = Processes(process_index=state.process_index, num_processes=state.num_processes)
    for _ in range(5):
        processes.gather(lambda: "here")
    assert torch.distributed.is_initialized()


if __name__ == "__main__":
    main()
