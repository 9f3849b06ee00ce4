"""
Runs a worker, and notes what torchrun does not tell: how it ended, and when.

    python -m tests.distributed.exit_codes FOLDER COMMAND ...

Of process R, FOLDER/pid.R has the worker's id from the start, and FOLDER/exit.R its exit code and the time when it is over. Only
the worker minds the signals that both get.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    folder, command, rank = Path(sys.argv[1]), sys.argv[2:], os.environ["RANK"]
    # A handler is not inherited, as to ignore a signal would be.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    worker = subprocess.Popen(command)
    (folder / f"pid.{rank}").write_text(str(worker.pid))
    code = worker.wait()
    (folder / f"exit.{rank}").write_text(f"{code} {time.time()}")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
