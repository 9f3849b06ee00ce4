"""transformers' auto classes know ensembles, whichever of its names is imported first, and `import smd_hf` imports none of it."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module", ["smd_hf", "smd_hf.ensemble", "smd_hf.cli.main", "smd_hf.cli.inspect", "smd_hf.cli.compare"]
)
def test_what_needs_no_model_imports_neither_torch_nor_datasets(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'datasets', 'timm') if name in sys.modules])"
    assert run(code).strip() == "[]"


KNOWN = """
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, AutoModelForSemanticSegmentation
config = CONFIG_MAPPING["smd_ensemble"]
assert AutoModelForImageClassification._model_mapping[config] is smd_hf.SMDEnsembleForImageClassification
assert config in AutoModelForSemanticSegmentation._model_mapping
"""


@pytest.mark.parametrize(
    "first",
    ["import smd_hf; from transformers import Trainer"]
    + [
        pytest.param(statement, marks=pytest.mark.slow)
        for statement in (
            "import smd_hf; from transformers import AutoConfig",
            "import smd_hf; from transformers import TrainingArguments",
            "import smd_hf; from transformers import ViTModel",
            "import smd_hf; from transformers import pipeline",
            "import smd_hf; from transformers.generation import GenerationMixin",
            "import smd_hf; smd_hf.EvolutionTrainer",
            "from transformers import AutoModelForImageClassification; import smd_hf",
            "from transformers import AutoConfig; import smd_hf",
        )
    ],
)
def test_auto_classes_know_ensembles(first):
    run(first + KNOWN)
