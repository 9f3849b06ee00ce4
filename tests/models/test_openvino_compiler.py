"""Models as OpenVINO runs them."""

import os
import threading

import numpy as np
import pytest
import torch

from smd_hf.models.openvino_compiler import compiled_for_cpu

openvino = pytest.importorskip("openvino")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Only Linux says on which cores a thread may run.")
def test_a_pass_may_run_on_every_core():
    """Each of two processes once held its own pass on the first core, and the second core was idle."""
    layers = [torch.nn.Conv2d(3, 64, 3), *(torch.nn.Conv2d(64, 64, 3) for _ in range(8))]
    images = torch.randn(8, 3, 64, 64)
    request = compiled_for_cpu(
        openvino.convert_model(torch.nn.Sequential(*layers).eval(), example_input=images)
    ).create_infer_request()
    thread, allowed, done = threading.get_native_id(), os.sched_getaffinity(0), threading.Event()
    seen = []

    def look() -> None:
        while not done.wait(0.001):
            seen.append(os.sched_getaffinity(thread))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(10):
            request.infer([np.asarray(images)])
    finally:
        done.set()
        looking.join()
    assert seen and all(each == allowed for each in seen)
