"""
The contract with libraries: each of their private names that smd_hf uses is listed in `private_names.py` and is still there.

Where a test fails after an upgrade, the message says what breaks. Where it fails after a change to smd_hf, add the new name to the
list with what would break, or better do without it.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

import smd_hf

from .private_names import DATA, PRIVATE_NAMES, SET, USED

PACKAGE = Path(smd_hf.__file__).parent
LIBRARIES = ("transformers", "accelerate", "huggingface_hub", "timm", "pymoo", "datasets", "evaluate")
DOCUMENTED_MODULES = {
    "transformers.integrations",
    *LIBRARIES,
    "datasets.exceptions",
    "huggingface_hub.errors",
    "timm.data",
    "transformers.modeling_outputs",
}
DOCUMENTED = {("transformers.utils", "logging")}
DOCUMENTED_ATTRIBUTES = {"_exit", "_fields", "_ops"}
"""Of `os`, of named tuples, and a module that is listed by itself."""
LISTED = {(home, name): entry for home, names in PRIVATE_NAMES.items() for name, entry in names.items()}
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def resolved(home: str):
    module, _, name = home.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def parameters(function) -> str:
    """A signature without annotations: `(self, model, trial=None)`."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r"<dataclasses\._MISSING_TYPE object at \w+>", "MISSING", text)


@pytest.mark.parametrize("home, name", LISTED)
def test_a_private_name_of_a_library_is_as_smd_hf_knows_it(home, name):
    expected, breaks = LISTED[home, name]
    owner = resolved(home)
    expected, _, since = expected.partition(" since ")
    if since and Version(version(home.split(".")[0])) < Version(since):
        return
    if expected == SET:
        setting = rf"\bself\.{name}\b[^=\n]*=[^=]|\bself\.{name}\.append|\"{name}\""
        sources = [inspect.getsource(kind) for kind in owner.__mro__ if kind is not object]
        assert any(re.search(setting, source) for source in sources), f"{home} no longer sets {name}: {breaks}"
    elif expected == USED:
        assert name in inspect.getsource(owner), f"{home} no longer uses {name}: {breaks}"
    else:
        assert hasattr(owner, name), f"{home} has no {name}: {breaks}"
        if expected != DATA:
            found = parameters(getattr(owner, name))
            assert found == expected, f"{home}.{name} takes other arguments than {expected}: {breaks}"


@functools.cache
def own_names() -> set[str]:
    """The private names that smd_hf itself defines: functions, classes, variables, fields and attributes of `self`."""
    names = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def used_attributes(tree: ast.AST) -> Iterator[str]:
    """Private names after a dot, or in the quotes of `getattr` and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def undocumented_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
            continue
        private_module = any(is_private(part) for part in node.module.split("."))
        undocumented = node.module.split(".")[0] in LIBRARIES and node.module not in DOCUMENTED_MODULES
        for name in (each.name for each in node.names):
            if (private_module or undocumented or is_private(name)) and (node.module, name) not in DOCUMENTED:
                yield node.module, name


def _shared_with_bases() -> Iterator[tuple[str, str]]:
    """Private names that a class of smd_hf defines or sets, and that a class of a library which it inherits from has, too."""
    # The page of a Space needs gradio, and has no base class of a library.
    names = {each.name for each in pkgutil.walk_packages(smd_hf.__path__, "smd_hf.")} - {"smd_hf.hub.space.app"}
    modules = [importlib.import_module(name) for name in sorted(names)]
    for kind in {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)}:
        if not kind.__module__.startswith("smd_hf."):
            continue
        ours = [each for each in kind.__mro__ if each.__module__.startswith("smd_hf.")]
        source = "".join(inspect.getsource(each) for each in ours)
        names = {name for each in ours for name in vars(each)} | set(re.findall(r"\bself\.(_\w+) = ", source))
        for base in kind.__mro__:
            if base.__module__.split(".")[0] in LIBRARIES:
                theirs = set(vars(base)) | set(re.findall(r"\bself\.(_\w+)\b", inspect.getsource(base)))
                yield from ((base.__name__, name) for name in names & theirs if is_private(name))


@functools.cache
def shared_with_bases() -> set[tuple[str, str]]:
    return set(_shared_with_bases())


def unlisted(tree: ast.AST, own: set[str]) -> set[str]:
    names = {name for _, name in LISTED}
    attributes = {
        name for name in used_attributes(tree) if is_private(name) and name not in own | DOCUMENTED_ATTRIBUTES
    }
    return (attributes - names) | {
        f"{module}.{name}" for module, name in set(undocumented_imports(tree)) - set(LISTED)
    }


@pytest.mark.parametrize("path", TREES, ids=str)
def test_every_private_name_that_a_file_uses_is_listed(path):
    assert not unlisted(TREES[path], own_names())


def test_every_private_name_that_a_class_shares_with_its_base_is_listed():
    listed = {(home.rpartition(":")[2], name) for home, name in LISTED}
    # What transformers sets on every class of models, by the look of its code.
    made_by_transformers = {"_is_stateful", "_no_split_modules", "_keep_in_fp32_modules", "_abc_impl", "_auto_class"}
    assert {pair for pair in shared_with_bases() if pair[1] not in made_by_transformers} <= listed


def test_every_listed_name_is_used():
    used = {name for tree in TREES.values() for name in used_attributes(tree)}
    used |= {name for tree in TREES.values() for _, name in undocumented_imports(tree)}
    used |= {name for _, name in shared_with_bases()}
    used |= own_names() & {name for names in PRIVATE_NAMES.values() for name in names}
    assert not {name for _, name in LISTED} - used


@pytest.mark.parametrize(
    "code, found",
    [
        ("trainer._issue_warnings_after_load(x)", "_issue_warnings_after_load"),
        ("getattr(model, '_tp_plan', None)", "_tp_plan"),
        (
            "from huggingface_hub.utils._http import hf_raise_for_status",
            "huggingface_hub.utils._http.hf_raise_for_status",
        ),
        ("from timm.models._registry import is_model", "timm.models._registry.is_model"),
        ("from transformers.trainer_utils import seed_worker", "transformers.trainer_utils.seed_worker"),
    ],
)
def test_a_name_that_is_not_listed_is_found(code, found):
    assert unlisted(ast.parse(code), own_names()) == {found}
