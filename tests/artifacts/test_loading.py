"""`load`: children, deltas and ensembles by one name, from folders and from the Hub."""

import json

import pytest
import torch

from smd_hf import SMDError
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification, save_ensemble
from smd_hf.artifacts.loading import load
from smd_hf.models.checkpoints import save_checkpoint, weights_hash
from smd_hf.models.load import load_model
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.hub.clients import run_client
from tests.hub.fixtures import hub_server  # noqa: F401
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_pixels, tiny_processor

PIXELS = tiny_pixels(2)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def make_children(model, count=4):
    """The changes of some children of a partition."""
    mutation = Mutation(model, make_decomposition("partition", parameter_space(model), count, None, 0), seed=3)
    return [dict(mutation.changes(child)) for child in mutation.children(0, 0.3)]


def logits(model):
    return model(PIXELS).logits


@pytest.mark.parametrize("kind", ["vit", "timm_resnet", "custom"])
def test_each_of_the_three_kinds(kind, tmp_path):
    trust = {"trust_remote_code": kind == "custom"}
    base = save_tiny_checkpoint(kind, tmp_path / "base")
    model = load_model(base, **trust)
    children = make_children(model)
    delta = SparseDelta.from_changes(model, children[0].items())
    child = delta.merge(model)
    delta.save_pretrained(tmp_path / "delta")
    save_checkpoint(child, tiny_processor(), tmp_path / "child")
    ensemble = SMDEnsembleForImageClassification.from_children(load_model(base, **trust), children)
    save_ensemble(ensemble, tiny_processor(), tmp_path / "ensemble")
    for folder, expected in (("base", model), ("child", child), ("delta", child), ("ensemble", ensemble)):
        loaded = load(tmp_path / folder, **trust)
        assert not loaded.training and torch.equal(logits(loaded), logits(expected)), folder
        assert type(loaded).__name__ == type(expected).__name__
        if kind == "custom":
            with pytest.raises(SMDError, match="trust_remote_code=True") as caught:
                load(tmp_path / folder)
            assert "\n" not in str(caught.value)
        else:
            half = load(tmp_path / folder, dtype="bfloat16")
            assert {p.dtype for p in half.parameters() if p.is_floating_point()} == {torch.bfloat16}
    # A delta beside the configuration of its base is still the delta.
    (tmp_path / "delta" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    assert torch.equal(logits(load(tmp_path / "delta", **trust)), logits(child))


def test_one_of_several_deltas(tmp_path):
    model = load_model(save_tiny_checkpoint("resnet", tmp_path / "base"))
    deltas = [SparseDelta.from_changes(model, child.items()) for child in make_children(model)]
    for i, delta in enumerate(deltas):
        delta.save_pretrained(tmp_path / "children" / f"{i:04d}")
    assert weights_hash(load(tmp_path / "children", subfolder="0002")) == deltas[2].config.child_hash
    assert weights_hash(load(tmp_path / "children" / "0001")) == deltas[1].config.child_hash
    with pytest.raises(SMDError, match="subfolder="):
        load(tmp_path / "children")
    with pytest.raises(SMDError, match="folder '0009',"):
        load(tmp_path / "children", subfolder="0009")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = load_model(save_tiny_checkpoint("resnet", tmp_path / "base"))
    delta = SparseDelta.from_changes(model, make_children(model)[0].items(), base_model="~/base")
    delta.save_pretrained(tmp_path / "delta")
    assert weights_hash(load("~/delta")) == delta.config.child_hash


def test_what_cannot_be_loaded(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SMDError, match="holds nothing that can be loaded"):
        load(tmp_path / "empty")
    with pytest.raises(SMDError, match="dtype is 'float8'"):
        load(tmp_path / "empty", dtype="float8")
    with pytest.raises(SMDError):
        load(tmp_path / "nowhere" / "to" / "be")
    for content in (
        "{",
        "[1]",
        "[" * 100_000,
        '"vit"',
        "null",
        '{"model_type": ["vit"]}',
        '{"model_type": "smd_ensemble"}',
    ):
        (tmp_path / "empty" / "config.json").write_text(content)
        with pytest.raises(SMDError) as caught:
            load(tmp_path / "empty")
        assert "\n" not in str(caught.value)


def test_a_tampered_ensemble_is_an_error_of_the_same_kind(tmp_path):
    model = tiny_model("resnet")
    SMDEnsembleForImageClassification.from_children(model, make_children(model)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["member_weights"] = [float(10**9)]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SMDError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_through_the_hub(hub_server, tmp_path):  # noqa: F811
    push = """
        import torch
        from smd_hf import SparseDelta
        from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification
        from smd_hf.errors import SMDError
        from smd_hf.models.load import load_model
        from tests.artifacts.test_loading import logits, make_children
        from tests.tiny import tiny_model

        torch.set_num_threads(1)
        tiny_model("vit").push_to_hub("tester/base", private=True)
        model = load_model("tester/base")
        children = make_children(model)
        with torch.no_grad():
            deltas = [SparseDelta.from_changes(model, child.items(), child=i) for i, child in enumerate(children)]
            result["url"] = deltas[0].push_to_hub("tester/delta", private=True, commit_message="One child").commit_url
            deltas[1].save_pretrained(folder)
            result["logits"] = logits(deltas[0].merge(model)).tolist()
        result["base"] = [deltas[0].config.base_model, deltas[0].config.base_revision]
        branch = SparseDelta.from_changes(model, children[0].items(), base_model="tester/base", base_revision="main")
        result["branch"] = branch.config.base_revision
        local = SparseDelta.from_changes(model, children[2].items(), base_model=folder)
        local.push_to_hub("tester/local")
        # The base moves on; the delta stays with its commit.
        tiny_model("vit", seed=1).push_to_hub("tester/base")
        ensemble = SMDEnsembleForImageClassification.from_children(model, children)
        with torch.no_grad():
            result["ensemble"] = logits(ensemble).tolist()
        ensemble.push_to_hub("tester/ensemble", private=True)
        try:
            deltas[0].push_to_hub("somebody/else", token=None)
        except SMDError as error:
            result["refused"] = str(error)
        try:
            deltas[0].push_to_hub("tester/delta", token="hf_wrongTokenThatNobodyMaySee")
        except SMDError as error:
            result["wrong token"] = str(error)
    """
    pushed = run_client(push, hub_server.environment(), folder=str(tmp_path))
    commit = hub_server.commits("tester/delta")[0]
    assert pushed["url"].endswith(commit.sha) and len(hub_server.commits("tester/delta")) == 2
    assert sorted(hub_server.files("tester/delta")) == [
        ".gitattributes",
        "smd_delta.safetensors",
        "smd_delta_config.json",
    ]
    assert hub_server.repository("tester/delta").private
    assert pushed["base"] == ["tester/base", hub_server.commits("tester/base")[1].sha]
    assert pushed["branch"] == pushed["base"][1]
    assert str(tmp_path).encode() not in b"".join(hub_server.files("tester/local").values())
    assert "hf upload somebody/else folder" in pushed["refused"]
    assert "could not be pushed" in pushed["wrong token"] and "hf_wrong" not in pushed["wrong token"]
    children = {f"{n}/{p.name}": p.read_bytes() for n in ("0000", "0001") for p in tmp_path.iterdir()}
    hub_server.add_repository("tester/children", children)

    pull = """
        import torch
        from huggingface_hub import constants
        from smd_hf import SparseDelta
        from smd_hf.errors import SMDError
        from smd_hf.artifacts.loading import load
        from tests.artifacts.test_loading import logits

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        def failure(*args, **kwargs):
            try:
                load(*args, **kwargs)
            except SMDError as error:
                return str(error)

        for wrong in (None, "hf_wrongTokenThatNobodyMaySee"):
            result[f"without token {wrong}"] = failure("tester/delta", token=wrong)
        result["delta"] = logits(load("tester/delta", token=token)).tolist()
        result["pinned"] = logits(load("tester/delta", token=token, revision=commit)).tolist()
        result["ensemble"] = logits(load("tester/ensemble", token=token)).tolist()
        plain = load("tester/base", token=token)
        result["plain"] = type(plain).__name__
        # Two commits of the base are in the cache: nothing says which one a model came from, unless it remembers.
        plain.config._commit_hash = None
        result["unknown commit"] = SparseDelta.between(plain, plain).config.base_revision
        plain.config._commit_hash = commit
        result["remembered commit"] = SparseDelta.between(plain, plain).config.base_revision
        result["child"] = SparseDelta.from_pretrained("tester/children", subfolder="0001").config.child
        load("tester/children", subfolder="0001", token=token)
        result["several"] = failure("tester/children")
        result["local"] = failure("tester/local")
        result["nothing"] = failure("tester/nothing", token=token)
        result["revision"] = failure("tester/delta", token=token, revision="v9")
        constants.HF_HUB_OFFLINE = True
        result["offline"] = [logits(load(name)).tolist() for name in ("tester/delta", "tester/ensemble")]
        load("tester/base")
        result["offline nothing"] = failure("tester/elsewhere")
    """
    environment = hub_server.environment(token=None)
    result = run_client(pull, environment, token=hub_server.token, commit=commit.sha)
    assert result["delta"] == result["pinned"] == pushed["logits"]
    assert result["ensemble"] == pushed["ensemble"] != pushed["logits"]
    assert result["offline"] == [pushed["logits"], pushed["ensemble"]]
    assert result["plain"] == "ViTForImageClassification" and result["child"] == 1
    assert result["unknown commit"] is None and result["remembered commit"] == commit.sha
    assert "subfolder=" in result["several"]
    assert "does not name its base" in result["local"]
    assert "no model of that name" in result["nothing"] and "no revision 'v9'" in result["revision"]
    assert "could not be reached" in result["offline nothing"]
    for wrong in (None, "hf_wrongTokenThatNobodyMaySee"):
        message = result[f"without token {wrong}"]
        assert "tester/delta" in message and "hf_wrong" not in message and "\n" not in message
    assert not [r for r in hub_server.requests if r.path.endswith((".bin", ".pt", ".pkl")) and r.status == 200]
