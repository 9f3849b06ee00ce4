"""Memory that a pass frees on the CPU is kept for the next one."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from smd_hf.scoring.evaluator import Evaluator

def resident():
    with open("/proc/self/status") as file:
        [line] = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024

Evaluator(torch.nn.Linear(1, 1), torch.device("cpu"))
before = resident()
large = [torch.ones(2**24) for _ in range(3)]
del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="The setting is one of glibc.")
@pytest.mark.parametrize("environment, kept", [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_large_blocks_are_kept_unless_the_environment_sets_memory(environment, kept):
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(command, env=inherited | environment, check=True, capture_output=True, text=True)
    megabytes = int(found.stdout)
    # Three blocks of 64 MiB.
    assert megabytes > 150 if kept else megabytes < 100
