"""Tampered ensembles are refused before they can predict, each with the reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification

from ..tiny import tiny_model
from .test_ensemble import make_child


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    model = tiny_model("resnet")
    children = [make_child(model, 0), make_child(model, 1), {}]
    SMDEnsembleForImageClassification.from_children(model, children).save_pretrained(folder)
    return folder


def tampered(original: Path, folder: Path, tensors=None, config=None) -> Path:
    """A copy of the folder, with functions applied to its tensors and its configuration in place."""
    state = load_file(original / "model.safetensors")
    settings = json.loads((original / "config.json").read_text())
    if tensors is not None:
        tensors(state)
    if config is not None:
        config(settings)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def put(name, position, value):
    def change(state):
        state[name][position] = value

    return change


FIRST = "resnet.embedder.embedder.convolution.weight"  # of 1176 coordinates

TENSORS = {
    "index negative": (put("member_0.indices", 0, -1), "outside"),
    "index out of range": (put("member_1.indices", -1, 2**30), "outside"),
    "index repeated": (lambda s: put("member_0.indices", 1, s["member_0.indices"][0])(s), "repeated"),
    "value NaN": (put("member_0.values", 3, float("nan")), "NaN"),
    "value infinite": (put("member_0.values", 3, float("inf")), "infinite"),
    "parent NaN": (lambda s: s[f"parent.{FIRST}"].view(-1)[5].fill_(float("nan")), "NaN"),
    "indices of floats": (lambda s: s.update({"member_0.indices": s["member_0.indices"].float()}), "F32"),
    "indices of int64": (lambda s: s.update({"member_0.indices": s["member_0.indices"].long()}), "I64"),
    "values of integers": (lambda s: s.update({"member_0.values": s["member_0.values"].int()}), "I32"),
    "indices too short": (lambda s: s.update({"member_0.indices": s["member_0.indices"][:-1].clone()}), "shape"),
    "values of two dimensions": (lambda s: s.update({"member_0.values": s["member_0.values"][None].clone()}), "shape"),
    "values missing": (lambda s: s.pop("member_1.values"), "missing"),
    "indices missing": (lambda s: s.pop("member_1.indices"), "missing"),
    "a member too many": (lambda s: s.update({"member_7.values": torch.zeros(3)}), "belong to no member"),
    "parent's tensor missing": (lambda s: s.pop(f"parent.{FIRST}"), "describes|missing"),
    "parent's tensor of another shape": (lambda s: s.update({f"parent.{FIRST}": torch.zeros(9999)}), "another shape"),
    "a tensor of nobody": (lambda s: s.update({"stranger": torch.zeros(3)}), "unexpected"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tampered_tensors_are_refused(case, original, tmp_path):
    change, message = TENSORS[case]
    folder = tampered(original, tmp_path, tensors=change)
    with pytest.raises(ValueError, match=message):
        AutoModelForImageClassification.from_pretrained(folder)


def within_parent(**entries):
    return lambda config: config["parent_config"].update(entries)


CONFIGS = {
    "unknown version": (lambda c: c.update(format_version=2), "format version 2"),
    "version of another type": (lambda c: c.update(format_version="1"), "format version"),
    "unknown combination": (lambda c: c.update(combination="../x"), "combination"),
    "weights missing": (lambda c: c.pop("member_weights"), "has not 0 counts|at least one member"),
    "a weight too few": (lambda c: c["member_weights"].pop(), "has not 2 counts"),
    "a weight NaN": (lambda c: c["member_weights"].__setitem__(0, float("nan")), "member_weights"),
    "a weight of text": (lambda c: c["member_weights"].__setitem__(0, "1"), "member_weights"),
    "a count too many": (lambda c: c["changes"][FIRST].append(0), "has not 3 counts"),
    "a count beyond the tensor": (lambda c: c["changes"][FIRST].__setitem__(0, 10**15), "which has 1176 coordinates"),
    "a negative count": (lambda c: c["changes"][FIRST].__setitem__(0, -1), "at least 0"),
    "a count of text": (lambda c: c["changes"][FIRST].__setitem__(0, "3"), "at least 0"),
    "a count moved": (lambda c: c["changes"][FIRST].__setitem__(0, None), "missing|shape"),
    "changes of no tensor": (lambda c: c["changes"].update(nowhere=[1, 0, 0]), "nowhere"),
    "changes of text": (lambda c: c.update(changes="all"), "changes"),
    "no parent": (lambda c: c.pop("parent_config"), "both or neither"),
    "parent and members": (lambda c: c.update(member_configs=[c["parent_config"]] * 3), "both or neither"),
    "parent of text": (lambda c: c.update(parent_config="../parent"), "model_type"),
    "parent an ensemble": (within_parent(model_type="smd_ensemble"), "cannot be an ensemble"),
    "parent unknown": (within_parent(model_type="none_such"), "none_such"),
    "parent enormous": (within_parent(hidden_sizes=[8, 16, 24 * 2**24]), "describes|wants I64"),
    "parent a little larger": (within_parent(depths=[1, 1, 4]), "describes"),
    "parent with negative sizes": (within_parent(hidden_sizes=[8, 16, -24]), "describes|No resnet model"),
    "parent with other labels": (within_parent(id2label={"0": "cat", "1": "dog"}), "4 labels"),
    "parent's path absolute": (within_parent(backbone="/etc/passwd"), "outside"),
    "parent's path upward": (within_parent(backbone={"file": ["weights/../../secret"]}), "outside"),
    "parent's code upward": (within_parent(auto_map={"AutoConfig": "../code.Config"}), "auto_map"),
    "parent's code absolute": (within_parent(auto_map={"AutoConfig": "/tmp/code.Config"}), "auto_map"),
    "parent's code elsewhere": (within_parent(auto_map={"AutoConfig": "user/other--code.Config"}), "auto_map"),
    "code upward": (lambda c: c["auto_map"].update(AutoConfig="../code.Config"), "auto_map"),
    "code elsewhere": (lambda c: c["auto_map"].update(AutoModel="user/other--code.Model"), "auto_map"),
    "weights elsewhere": (lambda c: c.update(transformers_weights="../model.safetensors"), "transformers_weights"),
    "timm from a folder": (
        within_parent(model_type="timm_wrapper", architecture="local-dir:/tmp/model"),
        "names another folder",
    ),
    "timm with a checkpoint": (
        within_parent(model_type="timm_wrapper", architecture="resnet10t", model_args={"checkpoint_path": "x.pth"}),
        "checkpoint_path",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_tampered_configurations_are_refused(case, original, tmp_path):
    change, message = CONFIGS[case]
    folder = tampered(original, tmp_path, config=change)
    for load in (SMDEnsembleForImageClassification.from_pretrained, AutoModelForImageClassification.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_files_that_are_not_whole_or_not_safetensors_are_refused(original, tmp_path):
    load = SMDEnsembleForImageClassification.from_pretrained
    folder = tampered(original, tmp_path)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"not a tensor"):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load(folder)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors files alone"):
        load(folder)
    for file in ("../model.safetensors", "/tmp/model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"parent.x": file}}))
        with pytest.raises(ValueError, match="not a file of the ensemble's folder"):
            load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"parent.x": "a.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks a\.safetensors"):
        load(folder)
    (tmp_path / "pytorch_model.bin").unlink()
