"""
Which runtime takes which architecture: the smallest model of every module of timm, and a tiny one of every class of transformers.

The environment variable `RUNTIMES_TABLE` names a file which gets a line of JSON for each model: name, runtime, reason why it
falls back to eager PyTorch, how many of two weights children replay from, and seconds. Delete the file before a run.
"""

import json
import os
import time

import pytest
import torch
import transformers

from smd_hf.errors import SMDError
from smd_hf.models.load import num_channels
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from tests.architectures.configs import all_classes, image_processor, image_size, small_config
from tests.architectures.steps import enliven
from tests.architectures.test_timm import timm_config
from tests.architectures.timm_models import modules_to_try
from tests.tiny import tiny_images

FALL_BACK = {
    # Its random weights give logits of 5,000,000, which PyTorch itself rounds to others in float64.
    ("openvino", "timm byoanet"): "differ from those of eager PyTorch",
    # OpenVINO 2026.4 mixes up tokens and heads where an image has as many of the one as of the other: here, in 64 pixels, four.
    ("openvino", "timm mobilevit"): "differ from those of eager PyTorch by 0.0025",
    # PyTorch marks an LSTM as random whether or not it drops anything.
    ("openvino", "timm sequencer"): "draws random numbers",
}
"""By runtime and name of the model, a part of the reason for which it is run by eager PyTorch."""

IN_COMPILED = [
    "BeitForImageClassification",
    "ConvNextForImageClassification",
    "EfficientNetForImageClassification",
    "MobileNetV2ForImageClassification",
    "PoolFormerForImageClassification",
    "PvtV2ForImageClassification",
    "ResNetForImageClassification",
    "Swinv2ForImageClassification",
    "ViTForImageClassification",
    "timm densenet",
    "timm efficientnet",
    "timm mobilenetv3",
    "timm nfnet",
    "timm regnet",
    "timm vision_transformer",
]
"""A sample, as compiling takes long on a CPU."""

CLASSES = {class_name: model_type for model_type, class_name in all_classes()}
NAMES = [*CLASSES, *(f"timm {module}" for module in modules_to_try())]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_openvino(name):
    take("openvino", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_COMPILED)
def test_compiled(name):
    take("compiled", name)


@torch.no_grad()
def take(runtime: str, name: str) -> None:
    """Runs a model in a runtime, and children from the middle on. It falls back for the reason that is listed, or not at all."""
    model, inputs = built(name)
    start, reason, replayed = time.monotonic(), None, None
    choice = RuntimeChoice(model, runtime, batch_size=2)
    try:
        choice.settle(inputs)
        replayed = replays(choice.runtime(runtime), model, inputs)
    except SMDError as error:
        reason = str(error)
    path = os.environ.get("RUNTIMES_TABLE")
    if path:
        row = {"name": name, "runtime": runtime, "reason": reason, "replayed": replayed}
        with open(path, "a", encoding="utf-8") as table:
            table.write(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}) + "\n")
    if (runtime, name) in FALL_BACK:
        assert reason is not None, f"{runtime} takes {name}: take it off the list"
        assert FALL_BACK[runtime, name] in reason
    else:
        assert reason is None, reason


def replays(runtime, model, inputs) -> str:
    """Of two weights, how many are in a part of the graph that a child can start at. Such children have the bits of full passes."""
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    names = [names[len(names) * 2 // 3], names[-1]]
    runtime.record(inputs, [{name} for name in names])
    starts = [runtime._recording.start([name]) for name in names]
    changes = [(names[-1], (None, model.get_parameter(names[-1]).detach() * 1.25 + 0.05))]
    with runtime.child(changes, {names[-1]}) as forward:
        short = forward(inputs).clone()
    with runtime.child(changes) as forward:
        assert torch.equal(short, forward(inputs)), "a replayed child has other logits"
    return f"{sum(start > 0 for start in starts)} of {len(names)}"


def built(name: str) -> tuple[transformers.PreTrainedModel, dict[str, torch.Tensor]]:
    """A model with random weights, and a batch of two images."""
    torch.manual_seed(0)
    if name in CLASSES:
        model_type = CLASSES[name]
        model, size = getattr(transformers, name)(small_config(model_type, name)).eval(), image_size(model_type)
        processor = image_processor(model_type)
    else:
        config = timm_config(name.removeprefix("timm "))
        model = transformers.TimmWrapperForImageClassification(config).eval()
        size, processor = model.config.pretrained_cfg["input_size"][-1], None
    enliven(model, size)
    if processor is None:
        return model, {"pixel_values": torch.randn(2, num_channels(model), size, size)}
    return model, dict(processor(images=tiny_images(2, size, seed=0), return_tensors="pt"))
