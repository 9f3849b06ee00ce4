"""
The configuration of a sparse delta, `smd_delta_config.json`, and its strict checks.

The file may come from anywhere, so it is not trusted until every entry has the type and form of the format. No number in it
leads to an allocation. The only place that it names, the base, is a Hub id or an absolute path.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from ...errors import SMDError
from ...files import without_repetition

DELTA_CONFIG_NAME = "smd_delta_config.json"
FORMAT_VERSION = 1
MAX_CONFIG_BYTES = 4 * 2**20
"""Room for some 40,000 tensors: more than any image classifier has."""

_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _entry(expected: str, holds: Callable[[Any], Any] = lambda value: True, **default: Any) -> Any:
    """A field that is valid if it has the annotated type and `holds` is true. `expected` describes it in errors."""

    def validate(value: Any) -> None:
        if value is not None and not holds(value):
            raise ValueError(expected)

    return validated_field(validate, metadata={"expected": expected}, **default)


def _are_counts(changes: dict[str, int | None]) -> bool:
    return all(name and (count is None or count > 0) for name, count in changes.items())


def _is_json(value: dict[str, Any]) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


def _is_path(base_model: str) -> bool:
    """Whether a base is named by the absolute, normalised path of a folder."""
    return os.path.isabs(base_model) and os.path.normpath(base_model) == base_model and base_model.isprintable()


def is_repo_id(name: Any) -> bool:
    """Whether this can be the id of a model on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str)  # None is valid to the Hub's library


@strict
@dataclass
class DeltaConfig:
    """
    The configuration of a delta. [`~DeltaConfig.checked`] makes one and explains invalid entries to the user.

    Args:
        base_hash (`str`): [`~smd_hf.models.checkpoints.weights_hash`] of the base, 64 hexadecimal digits.
        child_hash (`str`): hash of the child, likewise.
        dtype (`str`): dtype in which the base must be loaded: `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`.
        changes (`dict[str, int | None]`): number of stored coordinates of each changed tensor, by its checkpoint name; `None`
            if the whole tensor is stored.
        density (`float`): share of coordinates that the child changes, in [0, 1].
        base_model (`str`, *optional*): Hub id of the base, or the absolute path of its folder; `None` if it has neither.
        base_revision (`str`, *optional*): commit of the base on the Hub, 40 hexadecimal digits; `None` for a folder.
        base_custom_code (`bool`, *optional*, defaults to `False`): whether the base has its own Python files and needs
            `trust_remote_code=True` to load.
        seed (`int`, *optional*), generation (`int`, *optional*), child (`int`, *optional*): which child of which run.
            Generation and child count from 0.
        record (`dict`, *optional*, defaults to `{}`): further information, in JSON's types.
        smd_hf_version (`str`, *optional*, defaults to `""`): version of the library that made the delta.
        format_version (`int`, *optional*, defaults to 1): version of the two files' format.

    Raises:
        `StrictDataclassError`: if an entry has another type or form.
    """

    base_hash: str = _entry("64 hexadecimal digits", _HASH.fullmatch)
    child_hash: str = _entry("64 hexadecimal digits", _HASH.fullmatch)
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = _entry("float32, bfloat16, float16 or float64")
    changes: dict[str, int | None] = _entry(  # noqa: RUF009 (a field, as of `dataclasses.field`)
        "an object of tensors' names and counts above 0 or null", _are_counts
    )
    density: int | float = _entry("a number from 0 to 1", lambda density: 0 <= density <= 1)
    base_model: str | None = _entry(
        "the id of a model on the Hub, the absolute path of a folder without '..', or null",
        lambda base: _is_path(base) or is_repo_id(base),
        default=None,
    )
    base_revision: str | None = _entry(
        "the 40 hexadecimal digits of a commit, or null", _COMMIT.fullmatch, default=None
    )
    base_custom_code: bool = _entry("true or false", default=False)
    seed: int | None = _entry("an integer or null", default=None)
    generation: int | None = _entry("an integer from 0 or null", lambda generation: generation >= 0, default=None)
    child: int | None = _entry("an integer from 0 or null", lambda child: child >= 0, default=None)
    record: dict[str, Any] = _entry(  # noqa: RUF009
        "an object of strings, finite numbers, true, false, null, lists and objects", _is_json, default_factory=dict
    )
    smd_hf_version: str = _entry("a string", default="")
    format_version: Literal[1] = _entry(f"{FORMAT_VERSION}", default=FORMAT_VERSION)

    def validate_revision(self) -> None:
        """Raises an error if a base that is not on the Hub has a commit."""
        if self.base_revision is not None and (self.base_model is None or self.base_is_folder):
            raise ValueError("base_revision")

    @classmethod
    def checked(cls, **entries: Any) -> "DeltaConfig":
        """
        Makes a configuration from entries.

        Raises:
            `SMDError`: if an entry does not have the type or form that [`DeltaConfig`] expects. The message names the first.
        """
        try:
            return cls(**entries)
        except StrictDataclassError as error:
            found = re.match(r"Validation error for field '(\w+)'", str(error))
            name = found[1] if found else "base_revision"
            expected = (
                cls.__dataclass_fields__[name].metadata["expected"]
                if found
                else "null for a base that is not on the Hub"
            )
            raise SMDError(
                f"{DELTA_CONFIG_NAME}: {name} is {shown(entries[name])}; expected {expected}. The delta is refused: fix the entry, or "
                "get the file again from its source."
            ) from error

    @property
    def base_is_folder(self) -> bool:
        """Whether the base is a local folder of the machine that made the delta."""
        return self.base_model is not None and _is_path(self.base_model)

    def to_json(self) -> str:
        """The configuration as the text of the file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, content: bytes) -> "DeltaConfig":
        """
        Reads the configuration from the file's bytes.

        Raises:
            `SMDError`: if the file is not strict JSON in UTF-8 (NaN and duplicate keys are errors), or if entries are missing,
                unknown or invalid.
        """
        try:
            entries = json.loads(
                content.decode("utf-8"), object_pairs_hook=without_repetition, parse_constant=_refuse_constant
            )
            _check_names(entries, {entry.name for entry in fields(cls)})
            return cls.checked(**entries)
        except SMDError:
            raise
        except (ValueError, RecursionError) as error:
            raise SMDError(
                f"{DELTA_CONFIG_NAME} cannot be read ({shown(error, quote=False)}). Expected strict JSON in UTF-8, as "
                "SparseDelta.save_pretrained writes it: the file is damaged or was edited, get it again."
            ) from error


def shown(value: Any, quote: bool = True) -> str:
    """A value from a file, for a message: on one line, without control characters, and short."""
    text = repr(value) if quote else repr(str(value))[1:-1]
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_names(entries: Any, known: set[str]) -> None:
    """Raises [`SMDError`] if the file does not have exactly the entries of this format."""
    if not isinstance(entries, dict):
        raise SMDError(
            f"{DELTA_CONFIG_NAME} holds {shown(entries)}; expected an object, as SparseDelta.save_pretrained writes it."
        )
    # Check the version first: a newer format may have other entries.
    version = entries.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise SMDError(
            f"{DELTA_CONFIG_NAME} has the format_version {shown(version)}; this version of smd_hf reads format "
            f"{FORMAT_VERSION}. Upgrade smd_hf if the number is larger; otherwise the file is damaged: get it again."
        )
    lacking, unknown = sorted(known - entries.keys()), sorted(entries.keys() - known)
    if lacking or unknown:
        kind, names = ("lacks", lacking) if lacking else ("has the unknown entries", unknown)
        raise SMDError(
            f"{DELTA_CONFIG_NAME} {kind} {', '.join(map(shown, names[:4]))}. Expected exactly the entries of format "
            f"{FORMAT_VERSION}: the file is damaged or was edited, get it again."
        )


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
