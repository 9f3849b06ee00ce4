"""Memory that a pass frees on the CPU is kept for the next one."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from smd_hf.scoring import freed_memory
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.scoring.freed_memory import FreedMemory, keep_freed_memory

SCRIPT = """
import numpy
from smd_hf.scoring.freed_memory import keep_freed_memory

def resident():
    with open("/proc/self/status") as file:
        [line] = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024

kept = keep_freed_memory()
before = resident()
large = [numpy.ones(2**23) for _ in range(3)]
del large
print(int(kept), resident() - before)
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
    says, megabytes = map(int, found.stdout.split())
    # Three blocks of 64 MiB.
    assert says == kept and (megabytes > 150 if kept else megabytes < 100)


def test_the_first_evaluation_on_the_cpu_sets_it():
    keep_freed_memory.cache_clear()
    Evaluator(torch.nn.Linear(1, 1), torch.device("cpu"))
    assert keep_freed_memory.cache_info().misses == 1


def test_memory_is_given_back_after_enough_images_and_where_it_is_asked_for(monkeypatch):
    given = []
    monkeypatch.setattr(freed_memory, "GIVE_BACK_AFTER", 8)
    monkeypatch.setattr(freed_memory, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=given.append))
    freed = FreedMemory(torch.device("cpu"))
    for images, times in [(4, 0), (3, 0), (1, 1), (4, 1), (20, 2), (4, 2)]:
        freed.after(images)
        assert len(given) == times
    freed.give_back()
    freed.after(4)
    assert len(given) == 3
    FreedMemory(torch.device("meta")).give_back()
    assert len(given) == 3
