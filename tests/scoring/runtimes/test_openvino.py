"""What OpenVINO does to the process that it compiles and runs graphs in."""

import subprocess
import sys

import pytest

WIDE = """
import torch
from torch import nn
from smd_hf.scoring.runtimes.openvino import OpenVINO
from smd_hf.scoring.runtimes.segmented import SegmentedRuntime

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        widen = lambda: nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 3, 1))
        self.blocks = nn.ModuleList(widen() for _ in range(8))

    def forward(self, pixel_values):
        for block in self.blocks:
            pixel_values = pixel_values + block(pixel_values)
        return {"logits": pixel_values.mean((2, 3))}

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))

torch.set_num_threads(1)
model, inputs = Wide().eval(), {"pixel_values": torch.rand(4, 3, 224, 224)}
runtime = SegmentedRuntime(model, "openvino", OpenVINO, segments=8)
with torch.no_grad():
    begin = peak()
    runtime.forward(inputs)
    whole = peak() - begin
    parameters = dict(model.named_parameters())
    logits = runtime.record(inputs, [{name} for name in parameters])
    for name, values in parameters.items():
        with runtime.child([(name, (None, values))], {name}) as forward:
            assert torch.equal(forward(inputs), logits)
print(len(runtime._recording.exact), (peak() - begin) / whole)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="The peak of the memory is read from /proc.")
def test_graphs_that_start_at_other_places_share_the_memory_of_one_in_openvino():
    done = subprocess.run([sys.executable, "-c", WIDE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    starts, ratio = map(float, done.stdout.split())
    # 1.4 was seen, and 4.2 where each graph kept its own.
    assert starts >= 6 and ratio < 2.5


@pytest.mark.slow
def test_a_signal_is_heard_after_openvino_has_compiled():
    code = """
import faulthandler, signal
faulthandler.enable()
import torch
from smd_hf.scoring.runtimes.openvino import OpenVINO
from smd_hf.scoring.runtimes.segmented import SegmentedRuntime
from tests.tiny import tiny_model, tiny_pixels
model = tiny_model("timm_efficientnet").eval()
with torch.inference_mode():
    SegmentedRuntime(model, "openvino", OpenVINO).forward({"pixel_values": tiny_pixels()})
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "heard\n", done.stderr[-2000:]
