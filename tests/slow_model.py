"""
A model that takes its time, in proportion to the images and the same in each block: for what is said of the time left.

With [`virtual_time`] nobody waits: each block puts the clock forward, so that a loaded machine does not matter.
"""

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from tests.tiny import label_names

spend = time.sleep
"""How a block spends seconds."""


def virtual_time(monkeypatch) -> Callable[[], float]:
    """For one test, the time of `time.monotonic` and `time.perf_counter` is what blocks have spent, and nothing else; gives it."""
    now = 1000.0

    def clock() -> float:
        return now

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("tests.slow_model.spend", advance)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class SlowConfig(PreTrainedConfig):
    model_type = "slow"

    def __init__(self, depth: int = 4, seconds: float = 0.0, width: int = 8, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.seconds = seconds
        self.width = width


class SlowBlock(nn.Module):
    """A layer of which each image takes so many seconds."""

    def __init__(self, width: int, seconds: float):
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.seconds = seconds

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        spend(self.seconds * len(hidden))
        return torch.tanh(self.layer(hidden))


class SlowForImageClassification(PreTrainedModel):
    config_class = SlowConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    accepts_loss_kwargs = False

    def __init__(self, config: SlowConfig):
        super().__init__(config)
        self.stem = nn.Linear(3, config.width)
        self.blocks = nn.ModuleList([SlowBlock(config.width, config.seconds) for _ in range(config.depth)])
        self.head = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        hidden = self.stem(pixel_values.mean(dim=(2, 3)))
        for block in self.blocks:
            hidden = block(hidden)
        return ImageClassifierOutput(logits=self.head(hidden))


def slow_model(seconds: float, depth: int = 4, seed: int = 0) -> SlowForImageClassification:
    """
    A model of four classes in eval mode.

    Args:
        seconds (`float`): that an image takes, in all blocks together.
        depth (`int`, *optional*, defaults to 4): how many blocks.
    """
    names = label_names(4)
    config = SlowConfig(
        depth, seconds / depth, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SlowForImageClassification(config).eval()
