"""The smallest model of every module of timm, with random weights, through a whole run."""

import pytest
import timm
import torch
import transformers

from tests.architectures.steps import CLASSES, enliven, go_through, recorded
from tests.architectures.timm_models import IMAGE_SIZES, SHRUNK, SMALLEST, modules_to_try
from tests.tiny import label_names

REFUSED: dict[str, str] = {}
"""From module to a part of the message with which it is refused before anything is scored."""


@pytest.mark.slow
def test_table_has_every_module():
    assert sorted(SMALLEST) == sorted(timm.list_modules())


@pytest.mark.slow
@pytest.mark.parametrize("module", modules_to_try())
def test_timm_module(module, tmp_path, fresh):
    architecture = SMALLEST[module][0]
    with recorded(f"timm {module} ({architecture})", REFUSED):
        torch.manual_seed(0)
        model = transformers.TimmWrapperForImageClassification(timm_config(module)).eval()
        size = model.config.pretrained_cfg["input_size"][-1]
        enliven(model, size)
        checkpoint = tmp_path / "checkpoint"
        # As on the Hub: weights have timm's names, and tensors that modules share are written once under each name.
        state = {name: tensor.clone() for name, tensor in model.timm_model.state_dict().items()}
        model.save_pretrained(checkpoint, state_dict=state, save_original_format=False)
        del model, state
        go_through(checkpoint, tmp_path / "run", fresh, size, report=False)


def timm_config(module: str) -> transformers.TimmWrapperConfig:
    """As in the Hub's repositories of timm, with four classes and images as small as the model takes."""
    architecture, _ = SMALLEST[module]
    given = timm.get_pretrained_cfg(architecture).to_dict()
    size = given["input_size"][-1]
    if module in IMAGE_SIZES:
        size = IMAGE_SIZES[module]
    elif not given.get("fixed_input_size"):
        size = min(size, max(64, *(given.get("min_input_size") or [0])))
    return transformers.TimmWrapperConfig.from_dict(
        {
            "architecture": architecture,
            "num_classes": CLASSES,
            "label_names": label_names(CLASSES),
            "model_args": SHRUNK.get(module, {}),
            "pretrained_cfg": {
                "input_size": [given["input_size"][0], size, size],
                "fixed_input_size": bool(given.get("fixed_input_size")),
                "interpolation": "bilinear",
                "crop_pct": 1.0,
                "mean": list(given["mean"]),
                "std": list(given["std"]),
            },
        }
    )
