"""A spiking image classifier as custom code: leaky integrate-and-fire cells with a hard threshold, without a surrogate gradient."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class SpikingConfig(PreTrainedConfig):
    model_type = "lif_spiking"

    def __init__(self, channels=16, steps=8, leak=0.8, threshold=1.0, **kwargs):
        self.channels, self.steps, self.leak, self.threshold = channels, steps, leak, threshold
        super().__init__(**kwargs)


class SpikingForImageClassification(PreTrainedModel):
    config_class = SpikingConfig
    base_model_prefix = "cells"
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Conv2d(3, config.channels, 5, stride=2, padding=2)
        self.second = nn.Conv2d(config.channels, 2 * config.channels, 3, stride=2, padding=1)
        self.classifier = nn.Linear(2 * config.channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)

    def fire(self, voltage, current):
        """One step of the cells: leak, integrate, spike where the threshold is reached, and reset there."""
        voltage = self.config.leak * voltage + current
        spikes = (voltage >= self.config.threshold).to(voltage.dtype)
        return voltage * (1 - spikes), spikes

    def forward(self, pixel_values, **kwargs):
        current = self.first(pixel_values)
        below, above, rate = torch.zeros_like(current), 0.0, 0.0
        for _ in range(self.config.steps):
            below, spikes = self.fire(below, current)
            above, spikes = self.fire(above, self.second(spikes))
            rate = rate + spikes.mean((2, 3))
        return ImageClassifierOutput(logits=self.classifier(rate / self.config.steps))


SpikingConfig.register_for_auto_class()
SpikingForImageClassification.register_for_auto_class("AutoModelForImageClassification")
