"""`smd-hf env`: versions and machine, to paste into an issue."""

import os
import platform
from collections.abc import Sequence

import torch
from huggingface_hub import constants

from ..data.reading import usable_cores
from ..reports.gain_report import installed_version, package_versions
from .parsing import SimpleParser
from .tables import print_pairs

OPTIONAL = (
    "torchvision", "pymoo", "onnx", "onnxruntime", "openvino", "gradio", "tensorboard", "trackio", "mlflow", "wandb", "peft", "torchao",
)  # fmt: skip


def make_parser() -> SimpleParser:
    return SimpleParser("env", "Print versions and the machine, to paste into an issue. Nothing secret is printed.")


def run(argv: Sequence[str]) -> int:
    """Prints them. Takes no arguments."""
    make_parser().parse_args(argv)
    print_pairs(
        [
            *package_versions().items(),
            *((name, installed_version(name) or "not installed") for name in OPTIONAL),
            *machine(),
        ]
    )
    return 0


def machine() -> list[tuple[str, str]]:
    """What a run depends on, beside versions."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "none"
    if accelerator is not None:
        name = f" ({torch.cuda.get_device_name()})" if accelerator.type == "cuda" else ""
        device = f"{torch.accelerator.device_count()} x {accelerator.type}{name}"
    return [
        ("platform", platform.platform()),
        ("cores", f"{usable_cores()} usable, {torch.get_num_threads()} threads of torch"),
        ("accelerator", device),
        ("Hub", f"{constants.ENDPOINT}{' (offline)' if constants.HF_HUB_OFFLINE else ''}"),
        ("logged in", "yes" if _has_token() else "no"),
        (
            "launcher",
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}" if "RANK" in os.environ else "none",
        ),
    ]


def _has_token() -> bool:
    return bool(os.environ.get("HF_TOKEN")) or os.path.isfile(constants.HF_TOKEN_PATH)
