"""A child as a sparse delta: exact there and back, small on disk, and refused where it is not what it says."""

import json
import os
import random
import shutil
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from smd_hf import SMDError
from smd_hf.artifacts.delta.config import DELTA_CONFIG_NAME, MAX_CONFIG_BYTES, DeltaConfig
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.artifacts.delta.storage import DELTA_WEIGHTS_NAME
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_model
from smd_hf.scoring.changes import applied
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import DECOMPOSITIONS, make_decomposition
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_pixels

PIXELS = tiny_pixels(2)


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def make_child(model, decomposition="partition", directions=8, density=None, index=1):
    """A mutation of the model, and one of its children."""
    space = parameter_space(model)
    mutation = Mutation(model, make_decomposition(decomposition, space, directions, density, 0), seed=5)
    return mutation, mutation.children(2, 0.3)[index]


def make_delta(model, **info):
    mutation, child = make_child(model)
    return SparseDelta.from_changes(model, mutation.changes(child), **info)


def child_weights(model, mutation, child):
    with applied(mutation.parameters, mutation.changes(child)):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(model, weights):
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


# There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_children_of_every_decomposition_come_back_to_the_bit(decomposition, dtype, tmp_path):
    model = tiny_model("resnet").to(dtype)
    density = 0.05 if decomposition == "random" else None
    mutation, child = make_child(model, decomposition, 4, density)
    parent = weights_hash(model)
    expected = child_weights(model, mutation, child)
    delta = SparseDelta.from_changes(
        model, mutation.changes(child), density=child.density, seed=5, generation=child.generation, child=child.index
    )
    assert weights_hash(model) == parent
    delta.save_pretrained(tmp_path)
    read = SparseDelta.from_pretrained(tmp_path)
    assert read.config == delta.config
    assert (read.config.seed, read.config.generation, read.config.child) == (5, 2, 1)
    assert read.config.density == child.density and read.config.dtype == str(dtype).removeprefix("torch.")
    with read.apply_to(model):
        assert_same_weights(model, expected)
    assert weights_hash(model) == parent
    merged = read.merge(model)
    assert_same_weights(merged, expected)
    assert weights_hash(model) == parent and weights_hash(merged) == read.config.child_hash


@pytest.mark.parametrize("kind", ["vit", "swin", "timm_resnet", "timm_vit", "custom"])
def test_merging_loads_the_base_itself(kind, tmp_path):
    folder = save_tiny_checkpoint(kind, tmp_path / "base")
    trusted = kind == "custom"
    model = load_model(folder, trust_remote_code=trusted)
    delta = make_delta(model)
    assert delta.config.base_model == folder and delta.config.base_revision is None
    assert delta.config.base_custom_code == trusted
    delta.save_pretrained(tmp_path / "delta")
    read = SparseDelta.from_pretrained(tmp_path / "delta")
    child = read.merge(trust_remote_code=trusted)
    with read.apply_to(model):
        assert torch.equal(child(PIXELS).logits, model(PIXELS).logits)
    assert not torch.equal(child(PIXELS).logits, model(PIXELS).logits)
    assert not child.training and child.name_or_path == "" and type(child) is type(model)
    if trusted:
        with pytest.raises(SMDError, match="trust_remote_code=True"):
            read.merge()


def test_a_base_loaded_in_another_dtype_is_loaded_so_again(tmp_path):
    folder = save_tiny_checkpoint("vit", tmp_path / "base")
    delta = make_delta(load_model(folder, dtype="bfloat16"))
    assert delta.config.dtype == "bfloat16"
    assert weights_hash(delta.merge()) == delta.config.child_hash
    with pytest.raises(SMDError, match="in bfloat16"):
        delta.apply_to(load_model(folder))


def test_names_are_those_of_a_checkpoint(tmp_path):
    model = tiny_model("vit")
    make_delta(model).save_pretrained(tmp_path / "delta")
    model.save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    stored = load_file(tmp_path / "delta" / DELTA_WEIGHTS_NAME)
    assert "vit.encoder.layer.0.attention.attention.query.weight.indices" in stored
    assert {name.rsplit(".", 1)[0] for name in stored} <= base.keys()
    assert {tensor.dtype for name, tensor in stored.items() if name.endswith(".indices")} == {torch.int32}
    assert sorted(path.name for path in (tmp_path / "delta").iterdir()) == [DELTA_WEIGHTS_NAME, DELTA_CONFIG_NAME]


def test_the_difference_of_two_models():
    base, child = tiny_model("resnet"), tiny_model("resnet")
    weight = child.get_parameter("classifier.1.weight")
    weight.flatten()[3] = 7.0
    weight.flatten()[5] = -weight.flatten()[5]
    bias = child.get_parameter("classifier.1.bias")
    bias.add_(1)
    [norm, *_] = [module for module in child.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    norm.num_batches_tracked.add_(4)
    norm.running_mean[0] = 9.0
    norm.weight[1] = 0.0
    [base_norm, *_] = [module for module in base.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    base_norm.weight[1] = -0.0
    delta = SparseDelta.between(base, child, record={"why": "test"})
    indices, values = delta.changes["classifier.1.weight"]
    assert indices.tolist() == [3, 5] and torch.equal(values, weight.flatten()[[3, 5]])
    assert delta.changes["classifier.1.bias"][0] is None
    assert len(delta.changes) == 5 and delta.config.record == {"why": "test"}
    assert delta.config.base_model is None and 0 < delta.config.density < 0.01
    assert weights_hash(delta.merge(base)) == weights_hash(child)
    nothing = SparseDelta.between(base, base)
    assert nothing.changes == {} and weights_hash(nothing.merge(base)) == weights_hash(base)
    with pytest.raises(SMDError, match="do not have the same architecture"):
        SparseDelta.between(base, tiny_model("vit"))
    with pytest.raises(SMDError, match=r"shape \(5, 24\)"):
        SparseDelta.between(base, tiny_model("resnet", num_labels=5))


def test_an_empty_delta_round_trips(tmp_path):
    model = tiny_model("resnet")
    SparseDelta.between(model, model).save_pretrained(tmp_path)
    assert SparseDelta.from_pretrained(tmp_path).changes == {}


def test_a_channels_last_model_takes_the_same_delta():
    delta = make_delta(tiny_model("resnet"))
    model = tiny_model("resnet").to(memory_format=torch.channels_last)
    assert make_delta(model).config == delta.config
    assert weights_hash(delta.merge(model)) == delta.config.child_hash


def test_the_parent_comes_back_after_an_error_and_on_demand():
    model = tiny_model("resnet")
    delta = make_delta(model)
    with pytest.raises(ZeroDivisionError), delta.apply_to(model):
        assert weights_hash(model) == delta.config.child_hash
        raise ZeroDivisionError
    assert weights_hash(model) == delta.config.base_hash
    delta.apply_to(model)
    assert weights_hash(model) == delta.config.child_hash, "dropping the way back must not take it"
    with pytest.raises(SMDError, match="it is already the child"):
        delta.apply_to(model)
    handle = delta.apply_to(twin := tiny_model("resnet"))
    handle.restore()
    handle.restore()
    assert weights_hash(twin) == delta.config.base_hash


def test_disk_size(tmp_path):
    model = tiny_model("timm_resnet")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    mutation, child = make_child(model, "partition", 8)
    SparseDelta.from_changes(model, mutation.changes(child)).save_pretrained(tmp_path / "eighth")
    # An index and a value for each eighth coordinate: a quarter of the parent, and the header.
    assert (tmp_path / "eighth" / DELTA_WEIGHTS_NAME).stat().st_size < 0.25 * size + 20_000
    mutation, child = make_child(model, "antirandom", 2)
    SparseDelta.from_changes(model, mutation.changes(child)).save_pretrained(tmp_path / "half")
    # Where indices cost more than they spare, tensors are stored whole.
    assert (tmp_path / "half" / DELTA_WEIGHTS_NAME).stat().st_size < size + 20_000


def test_coordinates_that_stay_are_left_out():
    model = tiny_model("resnet").to(torch.bfloat16)
    mutation, child = make_child(model)
    changes = dict(mutation.changes(child))
    name, (indices, values) = next((n, c) for n, c in changes.items() if len(c[0]) > 20)
    values = values.clone()
    values[1:] = model.get_parameter(name).take(indices[1:])
    delta = SparseDelta.from_changes(model, [(name, (indices, values))])
    assert delta.config.changes == {name: 1}


# What a child may not be


def test_changes_that_do_not_fit_are_refused():
    model = tiny_model("resnet")
    before = weights_hash(model)
    name, size = "classifier.1.bias", 4
    one = torch.tensor([1], dtype=torch.int32)
    bad = [
        [("no.such.weight", (one, torch.ones(1)))],
        [(name, (one, torch.ones(1)))] * 2,
        [(name, (one, torch.ones(1, dtype=torch.float64)))],
        [(name, (one, torch.tensor([float("inf")])))],
        [(name, (torch.tensor([size]), torch.ones(1)))],
        [(name, (None, torch.ones(size + 1)))],
    ]
    for changes in bad:
        with pytest.raises(SMDError):
            SparseDelta.from_changes(model, changes)
    good = [(name, (one, torch.ones(1)))]
    for info in (
        {"density": 2.0},
        {"density": float("nan")},
        {"generation": -1},
        {"child": True},
        {"seed": "7"},
        {"record": {"x": float("nan")}},
        {"record": {1: "not a string"}},
        {"record": {"x": object()}},
        {"base_model": "../elsewhere"},
        {"base_model": "user/name", "base_revision": "main"},
        {"base_revision": "0" * 40},
    ):
        with pytest.raises(SMDError):
            SparseDelta.from_changes(model, good, **info)
    assert SparseDelta.from_changes(model, good, base_model="user/name", base_revision="0" * 40).config.density > 0
    assert weights_hash(model) == before


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SMDError, match="cannot be saved"):
        make_delta(tiny_model("resnet")).save_pretrained(tmp_path / "file")


def test_another_base_is_refused_and_left_alone(tmp_path):
    delta = make_delta(tiny_model("resnet"))
    for other in (tiny_model("resnet", seed=1), tiny_model("vit")):
        before = weights_hash(other)
        for use in (delta.apply_to, delta.merge):
            with pytest.raises(SMDError) as caught:
                use(other)
            assert before in str(caught.value) and delta.config.base_hash in str(caught.value)
        assert weights_hash(other) == before
    base = save_tiny_checkpoint("resnet", tmp_path, seed=1)
    moved = SparseDelta(replace(delta.config, base_model=base), delta.changes)
    with pytest.raises(SMDError, match=delta.config.base_hash):
        moved.merge()


def test_a_base_without_a_place():
    delta = make_delta(tiny_model("resnet"))
    with pytest.raises(SMDError, match="does not name its base"):
        delta.merge()
    elsewhere = SparseDelta(replace(delta.config, base_model="/home/someone/model"), delta.changes, from_hub=True)
    with pytest.raises(SMDError, match="comes from the Hub, but names a folder"):
        elsewhere.merge()
    assert weights_hash(elsewhere.merge(tiny_model("resnet"))) == delta.config.child_hash


# Tampered files


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A base, and the folder of a delta against it."""
    model = tiny_model("resnet")
    folder = tmp_path_factory.mktemp("pristine")
    whole = model.get_parameter("classifier.1.bias").detach() + 1
    mutation, child = make_child(model)
    changes = [(name, change) for name, change in mutation.changes(child) if name != "classifier.1.bias"]
    delta = SparseDelta.from_changes(model, [*changes, ("classifier.1.bias", (None, whole))], record={"a": [1]})
    delta.save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine[1], tmp_path / "delta"))


def use(folder, model):
    """All that a delta goes through."""
    with SparseDelta.from_pretrained(folder).apply_to(model):
        pass


def assert_refused(folder, model, message=""):
    before = weights_hash(model)
    with pytest.raises(SMDError, match=message) as caught:
        use(folder, model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    assert weights_hash(model) == before


WEIGHT = "classifier.1.weight"


def edit_indices(change):
    def edit(tensors):
        tensors[f"{WEIGHT}.indices"] = change(tensors[f"{WEIGHT}.indices"])

    return edit


def put(position, value):
    def change(indices):
        indices = indices.clone()
        indices[position] = value
        return indices

    return edit_indices(change)


def overflowing(tensors):
    """Indices whose differences are all positive, in the arithmetic of int32."""
    count = len(tensors[f"{WEIGHT}.indices"])
    negative = list(range(-(2**31), -(2**31) + count - 3))
    tensors[f"{WEIGHT}.indices"] = torch.tensor([1, *negative, -1, 5], dtype=torch.int32)


def edit_values(name, change):
    def edit(tensors):
        tensors[f"{name}.values"] = change(tensors[f"{name}.values"].clone())

    return edit


def first(value):
    def change(values):
        values.view(-1)[0] = value
        return values

    return change


TENSOR_EDITS = {
    "index beyond the end": (put(-1, 96), "outside the tensor's 96 coordinates"),
    "negative index": (put(0, -1), "below 0"),
    "overflowing differences": (overflowing, "below 0"),
    "repeated index": (edit_indices(lambda i: torch.cat([i[:1], i[:1], i[2:]])), "repeated"),
    "unsorted indices": (edit_indices(lambda i: i.flip(0)), "increasing order"),
    "indices as floats": (edit_indices(lambda i: i.float()), "I32 or I64"),
    "indices as int16": (edit_indices(lambda i: i.short()), "I32 or I64"),
    "too few indices": (edit_indices(lambda i: i[1:].clone()), "of shape"),
    "indices of two dimensions": (edit_indices(lambda i: i[None].clone()), "of shape"),
    "values of another dtype": (edit_values(WEIGHT, lambda v: v.half()), "float16"),
    "values of a strange dtype": (edit_values(WEIGHT, lambda v: v.to(torch.uint8)), "U8"),
    "too many values": (edit_values(WEIGHT, lambda v: torch.cat([v, v])), "of shape"),
    "a value that is NaN": (edit_values(WEIGHT, first(float("nan"))), "NaN"),
    "a value that is infinite": (edit_values("classifier.1.bias", first(float("-inf"))), "NaN or infinite"),
    "whole tensor of another shape": (edit_values("classifier.1.bias", lambda v: v.view(2, 2)), r"\(2, 2\)"),
    "another value": (edit_values(WEIGHT, first(0.5)), "does not give the child that it names"),
    "no values": (lambda tensors: tensors.pop(f"{WEIGHT}.values"), "lacks"),
    "no indices": (lambda tensors: tensors.pop(f"{WEIGHT}.indices"), "lacks"),
    "no whole tensor": (lambda tensors: tensors.pop("classifier.1.bias.values"), "lacks"),
    "indices for a whole tensor": (
        lambda tensors: tensors.update({"classifier.1.bias.indices": torch.tensor([0])}),
        "has the unknown tensors",
    ),
    "a further tensor": (lambda tensors: tensors.update({"x\n\x1b[31m": torch.zeros(2)}), "has the unknown tensors"),
}


@pytest.mark.parametrize("case", TENSOR_EDITS)
def test_tampered_tensors(case, folder, pristine):
    edit, message = TENSOR_EDITS[case]
    tensors = load_file(folder / DELTA_WEIGHTS_NAME)
    edit(tensors)
    save_file(tensors, folder / DELTA_WEIGHTS_NAME)
    assert_refused(folder, pristine[0], message)


def test_an_absurd_count(folder, pristine):
    path = folder / DELTA_CONFIG_NAME
    config = json.loads(path.read_text())
    for count in (10**15, 10**30):
        config["changes"][WEIGHT] = count
        path.write_text(json.dumps(config))
        assert_refused(folder, pristine[0], rf"expected I32 or I64 of shape \[{count}\]")


def test_a_tensor_that_the_base_lacks(folder, pristine):
    tensors = load_file(folder / DELTA_WEIGHTS_NAME)
    save_file(tensors | {"no.such.values": torch.zeros(2)}, folder / DELTA_WEIGHTS_NAME)
    path = folder / DELTA_CONFIG_NAME
    config = json.loads(path.read_text())
    config["changes"]["no.such"] = None
    path.write_text(json.dumps(config))
    assert_refused(folder, pristine[0], "'no.such', but its base")


CONFIG_EDITS = {
    "newer format": ({"format_version": 2, "news": 1}, "Upgrade smd_hf"),
    "format of another type": ({"format_version": "1"}, "format_version"),
    "format true": ({"format_version": True}, "format_version"),
    "unknown entry": ({"weights_file": "../../etc/passwd"}, "unknown entries 'weights_file'"),
    "base outside": ({"base_model": "../../secret"}, "base_model"),
    "base with detours": ({"base_model": "/tmp/../etc"}, "base_model"),
    "base in the home folder": ({"base_model": "~/model"}, "base_model"),
    "base as a URL": ({"base_model": "https://example.org/x"}, "base_model"),
    "base of another type": ({"base_model": ["a"]}, "base_model"),
    "base that breaks lines": ({"base_model": "/tmp/a\nb"}, "base_model"),
    "branch for a commit": ({"base_model": "user/name", "base_revision": "main"}, "base_revision"),
    "commit of nothing": ({"base_revision": "0" * 40}, "base_revision"),
    "another base": ({"base_hash": "0" * 64}, "0{64}, but the hash of the model"),
    "hash in capitals": ({"base_hash": "A" * 64}, "base_hash"),
    "another child": ({"child_hash": "0" * 64}, "does not give the child that it names"),
    "unknown dtype": ({"dtype": "load_state_dict"}, "dtype"),
    "density beyond 1": ({"density": 1.5}, "density"),
    "density infinite": ({"density": float("inf")}, "not JSON"),
    "density true": ({"density": True}, "density"),
    "seed as text": ({"seed": "1"}, "seed"),
    "child below 0": ({"child": -1}, "child"),
    "code as a number": ({"base_custom_code": 1}, "base_custom_code"),
    "record as a list": ({"record": []}, "record"),
    "version as a number": ({"smd_hf_version": 1}, "smd_hf_version"),
    "changes as a list": ({"changes": []}, "changes"),
    "count below 1": ({"changes": {WEIGHT: 0}}, "above 0"),
    "no changes": ({"changes": {}}, "has the unknown tensors"),
}


@pytest.mark.parametrize("case", CONFIG_EDITS)
def test_tampered_configuration(case, folder, pristine):
    entries, message = CONFIG_EDITS[case]
    path = folder / DELTA_CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    assert_refused(folder, pristine[0], message)


@pytest.mark.parametrize("name", [field.name for field in fields(DeltaConfig)])
def test_missing_entries(name, folder, pristine):
    path = folder / DELTA_CONFIG_NAME
    config = json.loads(path.read_text())
    del config[name]
    path.write_text(json.dumps(config))
    assert_refused(folder, pristine[0], f"lacks '{name}'" if name != "format_version" else "format_version None")


def test_json_that_is_not_strict(folder, pristine):
    path = folder / DELTA_CONFIG_NAME
    text = path.read_text()
    for content, message in (
        (text.replace('"seed": null', '"seed": null, "seed": 3'), "given twice"),
        (text.replace('"a": [', '"a": 1, "a": ['), "given twice"),
        (text.replace('"seed": null', '"seed": NaN'), "not JSON"),
        (text.replace('"seed": null', '"seed": 1e999'), "seed"),
        (text.replace('"a": [', '"a": [1e999, '), "record"),
        (text.replace('"seed": null', f'"seed": {"9" * 5000}'), "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "expected an object"),
        ("", "cannot be read"),
        (text[:-20], "cannot be read"),
        (" " * MAX_CONFIG_BYTES + text, "larger than"),
    ):
        path.write_text(content)
        assert_refused(folder, pristine[0], message)
    path.write_bytes(text.encode("utf-16"))
    assert_refused(folder, pristine[0], "cannot be read")


def test_what_is_nested_too_deeply_to_be_shown_is_refused_by_name(pristine):
    text = (pristine[1] / DELTA_CONFIG_NAME).read_text()
    # At some depth JSON can still be parsed, and no longer be put into a message.
    for depth in range(600, 1000):
        nested = text.replace('"seed": null', f'"seed": {"[" * depth}{"]" * depth}')
        with pytest.raises(SMDError, match=r"seed is|cannot be read"):
            DeltaConfig.from_json(nested.encode())


def test_files_that_are_not_whole(folder, pristine):
    path = folder / DELTA_WEIGHTS_NAME
    content = path.read_bytes()
    for broken in (
        content[:-1],
        content + b"\0",
        b"",
        b"\xff" * 8 + content,
        (2**40).to_bytes(8, "little") + content[8:],
    ):
        path.write_bytes(broken)
        assert_refused(folder, pristine[0], "not a complete safetensors file")
    path.unlink()
    assert_refused(folder, pristine[0], f"has no {DELTA_WEIGHTS_NAME}")
    (folder / DELTA_CONFIG_NAME).unlink()
    assert_refused(folder, pristine[0], f"has no {DELTA_CONFIG_NAME}")


@pytest.mark.parametrize("filename", [DELTA_CONFIG_NAME, DELTA_WEIGHTS_NAME])
def test_links_and_other_things_in_the_place_of_files(filename, folder, pristine, tmp_path):
    path, outside = folder / filename, tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    assert_refused(folder, pristine[0], "outside that folder")
    path.unlink()
    path.symlink_to(path)
    assert_refused(folder, pristine[0], "is a broken link")
    path.unlink()
    os.mkfifo(path)
    assert_refused(folder, pristine[0], "not a regular file")
    path.unlink()
    path.mkdir()
    assert_refused(folder, pristine[0], "not a regular file")
    path.rmdir()
    shutil.move(outside, folder / "inside")
    path.symlink_to("inside")
    use(folder, pristine[0])


def test_a_snapshot_of_the_cache_is_a_folder_of_links(pristine, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    shutil.copytree(pristine[1], blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    use(snapshot, pristine[0])


def test_no_other_file_is_opened(folder, pristine, tmp_path):
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "config.json", "modeling.py", "README.md"):
        # A fifo blocks whoever opens it.
        os.mkfifo(folder / name)
    worker = threading.Thread(target=use, args=(folder, pristine[0]), daemon=True)
    worker.start()
    worker.join(30)
    assert not worker.is_alive()


def test_a_subfolder_and_names_that_are_none(pristine, tmp_path):
    shutil.copytree(pristine[1], tmp_path / "children" / "0001")
    read = SparseDelta.from_pretrained(tmp_path, subfolder="children/0001")
    assert read.config == SparseDelta.from_pretrained(pristine[1]).config
    with pytest.raises(SMDError, match="folder 'children/0002',"):
        SparseDelta.from_pretrained(tmp_path, subfolder="children/0002")
    with pytest.raises(SMDError, match="outside that folder"):
        shutil.copytree(pristine[1], tmp_path / "other" / "0001")
        SparseDelta.from_pretrained(tmp_path / "children", subfolder="../other/0001")
    with pytest.raises(SMDError):
        SparseDelta.from_pretrained(pristine[1] / DELTA_CONFIG_NAME)


# Fuzzing

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def ends_well(folder, model):
    """Either it is taken, or refused by name; the model is left as it was, and nothing written beside the two files."""
    before, listing = weights_hash(model), sorted(path.name for path in folder.iterdir())
    try:
        use(folder, model)
    except SMDError as error:
        assert "\n" not in str(error)
    assert weights_hash(model) == before
    assert sorted(path.name for path in folder.iterdir()) == listing


@FUZZ
@given(st.sampled_from([field.name for field in fields(DeltaConfig)]), JSON)
def test_fuzzed_entries(pristine, tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-entries"
    shutil.copytree(pristine[1], folder, dirs_exist_ok=True)
    path = folder / DELTA_CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    ends_well(folder, pristine[0])


@FUZZ
@given(
    st.sampled_from([DELTA_CONFIG_NAME, DELTA_WEIGHTS_NAME]), st.integers(0, 2**32), st.integers(1, 8), st.booleans()
)
def test_fuzzed_bytes(pristine, tmp_path_factory, filename, seed, count, cut):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-bytes"
    shutil.copytree(pristine[1], folder, dirs_exist_ok=True)
    content = bytearray((folder / filename).read_bytes())
    source = random.Random(seed)
    # Half of the changes go to the start, where a safetensors file has its header.
    for _ in range(count):
        content[source.randrange(len(content) if source.random() < 0.5 else min(len(content), 6000))] = (
            source.randrange(256)
        )
    if cut:
        del content[source.randrange(len(content)) :]
    (folder / filename).write_bytes(content)
    ends_well(folder, pristine[0])


@FUZZ
@given(st.data())
def test_fuzzed_tensors(pristine, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-tensors"
    shutil.copytree(pristine[1], folder, dirs_exist_ok=True)
    tensors = load_file(folder / DELTA_WEIGHTS_NAME)
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtype = data.draw(st.sampled_from([tensors[name].dtype, torch.int32, torch.int64, torch.bfloat16, torch.bool]))
    edge = st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]) | st.integers(-100, 1000)
    values = data.draw(st.lists(edge, max_size=12) | st.just(list(range(len(tensors[name])))))
    tensors[name] = torch.tensor(values).to(dtype)
    save_file(tensors, folder / DELTA_WEIGHTS_NAME)
    if data.draw(st.booleans()):
        path = folder / DELTA_CONFIG_NAME
        config = json.loads(path.read_text())
        config["changes"][name.rsplit(".", 1)[0]] = data.draw(st.none() | st.just(len(values)))
        path.write_text(json.dumps(config))
    ends_well(folder, pristine[0])
