"""What the Hub makes of a README: its front matter, and the errors and warnings of `validate-yaml`."""

import re

import yaml

LICENSE_NAMES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 "
    "gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl "
    "apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma "
    "unknown other"
)
LICENSES = frozenset(LICENSE_NAMES.split())
BASE_MODEL_RELATIONS = frozenset(["adapter", "finetune", "merge", "quantized"])
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
REPO_ID = re.compile(r"^(?:[\w.-]+/)?[\w.-]+$")


def front_matter(readme: str) -> dict:
    """The metadata at the top of a README, empty where there is none or it does not parse."""
    match = FRONT_MATTER.match(readme)
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_card(readme: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README's metadata, as `POST /api/validate-yaml` gives them."""
    match = FRONT_MATTER.match(readme)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if not isinstance(metadata, dict):
        return ["metadata must be a mapping"], []
    errors = []
    licenses = metadata.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of the known identifiers, got {name!r}')
    base_models = metadata.get("base_model", [])
    for name in base_models if isinstance(base_models, list) else [base_models]:
        if not isinstance(name, str) or not REPO_ID.match(name):
            errors.append(f'"base_model" with value {name!r} is not valid: use a model id from the Hub')
    relation = metadata.get("base_model_relation")
    if relation is not None and relation not in BASE_MODEL_RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(BASE_MODEL_RELATIONS)}, got {relation!r}')
    for name in ("datasets", "metrics", "tags"):
        values = metadata.get(name, [])
        if isinstance(values, list) and not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be a list of strings')
    return errors + check_model_index(metadata.get("model-index", [])), []


def check_model_index(index: object) -> list[str]:
    """What is missing from a `model-index`, each error with its place."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []

    def require(owner: object, place: str, name: str, kind: type) -> object:
        value = owner.get(name) if isinstance(owner, dict) else None
        if not isinstance(value, kind):
            errors.append(f'"{place}.{name}" is required')
            return kind()
        return value

    for i, model in enumerate(index):
        require(model, f"model-index[{i}]", "name", str)
        for j, result in enumerate(require(model, f"model-index[{i}]", "results", list)):
            place = f"model-index[{i}].results[{j}]"
            require(require(result, place, "task", dict), f"{place}.task", "type", str)
            dataset = require(result, place, "dataset", dict)
            require(dataset, f"{place}.dataset", "type", str)
            require(dataset, f"{place}.dataset", "name", str)
            for k, metric in enumerate(require(result, place, "metrics", list)):
                require(metric, f"{place}.metrics[{k}]", "type", str)
                if not isinstance(metric, dict) or metric.get("value") is None:
                    errors.append(f'"{place}.metrics[{k}].value" is required')
    return errors
