"""
Models that compare images with texts (CLIP, SigLIP and kin) as classifiers of images among candidate texts.

The texts are encoded once. Afterwards `forward` takes images alone, and its logits are those that the whole model computes for
the same images and texts. Parameters, names and files stay the model's own.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import SMDError
from .tasks import ZERO_SHOT, task_of

TEXT_PARAMETERS = "text_*"
"""Pattern of the parameters that only texts pass through: the text tower and its projection."""

_OF_TEXTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "return_loss")
_BUFFER = "candidate_"


@dataclass(eq=False)
class ImageTextProcessor:
    """The image processor and the tokenizer of a checkpoint, which are saved together."""

    image_processor: Any
    tokenizer: Any

    def save_pretrained(self, folder: str | os.PathLike, **kwargs: Any) -> None:
        self.tokenizer.save_pretrained(folder, **kwargs)
        self.image_processor.save_pretrained(folder, **kwargs)


def has_two_towers(model: Any) -> bool:
    """Whether a model compares images with texts."""
    return task_of(type(model).__name__) == ZERO_SHOT


def tokenized(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """Texts as inputs of the model, padded as transformers' zero-shot pipeline pads them."""
    padding: dict[str, Any] = {"padding": True}
    if "siglip" in model.config.model_type:
        padding = {"padding": "max_length", "max_length": 64, "truncation": True}
    return tokenizer(list(texts), return_tensors="pt", **padding)


def compare_with_texts(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> None:
    """
    Encodes texts, and turns the model into a classifier of images among them, in place. It can be called again with others.

    `forward` with `input_ids` is as before.

    Raises:
        `SMDError`: if images and texts meet before the last layer, so that texts cannot be encoded by themselves.
    """
    tower: Any = getattr(model, "text_model", None)
    if not isinstance(tower, torch.nn.Module) or not hasattr(model, "get_text_features"):
        raise SMDError(
            f"A {type(model).__name__} has no text tower of its own, so candidate labels cannot be encoded once. Choose a model with two "
            "towers: CLIP, SigLIP, SigLIP 2, MetaCLIP 2, AltCLIP, ChineseCLIP, CLIPSeg, ALIGN or TIPSv2."
        )
    for module in (model, tower):
        module.__dict__.pop("forward", None)
    for name in [name for name, _ in tower.named_buffers(recurse=False) if name.startswith(_BUFFER)]:
        delattr(tower, name)
    recorded: list[Any] = []

    def record(module: Any, args: Any, output: Any) -> None:
        # A copy, as some models put projected features into the same object. No model reads a text after its first token.
        kept = {"last_hidden_state": output.last_hidden_state[:, :1].clone()}
        if output.get("pooler_output") is not None:
            kept["pooler_output"] = output.pooler_output.clone()
        recorded.append((type(output), kept))

    texts = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    handle = tower.register_forward_hook(record)
    try:
        with torch.no_grad():
            model.get_text_features(**texts)  # pyright: ignore[reportCallIssue]
    finally:
        handle.remove()
    (kind, kept), *_ = recorded
    tower.register_buffer(f"{_BUFFER}input_ids", texts["input_ids"], persistent=False)
    for name, tensor in kept.items():
        tower.register_buffer(_BUFFER + name, tensor, persistent=False)

    def text_forward(self: Any, input_ids: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if input_ids is not self.candidate_input_ids:
            return type(self).forward(self, input_ids, *args, **kwargs)
        return kind(**{name: getattr(self, _BUFFER + name) for name in kept})

    tower.forward = MethodType(text_forward, tower)
    model.forward = MethodType(_image_forward(type(model)), model)
    model.main_input_name = "pixel_values"


def _image_forward(cls: type[PreTrainedModel]) -> Any:
    """The forward of a class, with the encoded texts where none are given."""

    def forward(self: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if kwargs.get("input_ids") is not None:
            return cls.forward(self, pixel_values=pixel_values, **kwargs)
        kwargs.pop("labels", None)
        kwargs["input_ids"] = self.text_model.candidate_input_ids
        output = cls.forward(self, pixel_values=pixel_values, **kwargs)
        return ImageClassifierOutput(logits=output.logits_per_image)

    signature = inspect.signature(cls.forward)
    # What batches are asked for: the inputs of images.
    forward.__signature__ = signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
        parameters=[
            each
            for each in signature.parameters.values()
            if each.name not in _OF_TEXTS and each.kind is not each.VAR_KEYWORD
        ],
        return_annotation=inspect.Signature.empty,
    )
    return forward
