"""
What a sparse delta says of itself: `smd_delta_config.json`, strictly checked.

The file comes from anywhere, so it is taken for hostile until every entry has the type and the form that the format gives
it. No number in it leads to an allocation, and the one place that it names, the base, is a Hub id or an absolute path.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...errors import SMDError

DELTA_CONFIG_NAME = "smd_delta_config.json"
FORMAT_VERSION = 1
MAX_CONFIG_BYTES = 4 * 2**20
"""Room for some 40,000 tensors: more than any image classifier has."""

BASE_DTYPES = ("float32", "bfloat16", "float16", "float64")

_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_NAME = 512


@dataclass(frozen=True)
class DeltaConfig:
    """
    The facts about a delta that are not tensors.

    Args:
        base_hash (`str`): [`~smd_hf.models.checkpoints.weights_hash`] of the base, 64 hexadecimal digits.
        child_hash (`str`): the same of the child.
        dtype (`str`): the base's, as it must be loaded: `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`.
        changes (`dict[str, int | None]`): for each changed tensor, by its name in a checkpoint of the base, how many
            coordinates are stored; `None` where the whole tensor is.
        density (`float`): share of coordinates that the child changes, in [0, 1].
        base_model (`str`, *optional*): Hub id of the base, or the absolute path of its folder; `None` where it has no place.
        base_revision (`str`, *optional*): commit of the base on the Hub, 40 hexadecimal digits; `None` for a folder.
        base_custom_code (`bool`, *optional*, defaults to `False`): whether the base is defined by Python files of its own,
            so that it loads with `trust_remote_code=True` alone.
        seed (`int`, *optional*), generation (`int`, *optional*), child (`int`, *optional*): which child of which run;
            generation and child count from 0.
        record (`dict`, *optional*, defaults to `{}`): anything else worth keeping, of JSON's types.
        smd_hf_version (`str`, *optional*, defaults to `""`): of the library that made the delta.
        format_version (`int`, *optional*, defaults to 1): of the two files.

    Raises:
        `SMDError`: for an entry of another type or form.
    """

    base_hash: str
    child_hash: str
    dtype: str
    changes: dict[str, int | None]
    density: float
    base_model: str | None = None
    base_revision: str | None = None
    base_custom_code: bool = False
    seed: int | None = None
    generation: int | None = None
    child: int | None = None
    record: dict[str, Any] = field(default_factory=dict)
    smd_hf_version: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not _is_int(self.format_version) or self.format_version != FORMAT_VERSION:
            raise SMDError(
                f"The delta's format_version is {shown(self.format_version)}; this version of smd_hf reads format "
                f"{FORMAT_VERSION}. Upgrade smd_hf if the number is larger; otherwise the file is damaged: get it again."
            )
        for name in ("base_hash", "child_hash"):
            value = getattr(self, name)
            _require(isinstance(value, str) and _HASH.fullmatch(value), name, value, "64 hexadecimal digits")
        _require(self.dtype in BASE_DTYPES, "dtype", self.dtype, f"one of {', '.join(BASE_DTYPES)}")
        self._check_changes()
        _require(
            isinstance(self.density, int | float) and not isinstance(self.density, bool) and 0 <= self.density <= 1,
            "density",
            self.density,
            "a number from 0 to 1",
        )
        self._check_base()
        _require(isinstance(self.base_custom_code, bool), "base_custom_code", self.base_custom_code, "true or false")
        _require(self.seed is None or _is_int(self.seed), "seed", self.seed, "an integer or null")
        for name in ("generation", "child"):
            value = getattr(self, name)
            _require(value is None or (_is_int(value) and value >= 0), name, value, "an integer from 0 or null")
        _require(
            isinstance(self.record, dict) and _is_json(self.record),
            "record",
            self.record,
            "an object of strings, finite numbers, true, false, null, lists and objects",
        )
        _require(isinstance(self.smd_hf_version, str), "smd_hf_version", self.smd_hf_version, "a string")

    def _check_changes(self) -> None:
        _require(isinstance(self.changes, dict), "changes", self.changes, "an object of names and counts")
        for name, count in self.changes.items():
            _require(isinstance(name, str) and name, "changes", name, "names of tensors")
            _require(
                count is None or (_is_int(count) and count > 0), f"changes[{shown(name)}]", count, "above 0 or null"
            )

    def _check_base(self) -> None:
        base, revision = self.base_model, self.base_revision
        _require(
            base is None or (isinstance(base, str) and (is_path(base) or is_repo_id(base))),
            "base_model",
            base,
            "the id of a model on the Hub, the absolute path of a folder without '..', or null",
        )
        _require(
            revision is None or (isinstance(revision, str) and _COMMIT.fullmatch(revision)),
            "base_revision",
            revision,
            "the 40 hexadecimal digits of a commit, or null",
        )
        _require(
            revision is None or (base is not None and not is_path(base)),
            "base_revision",
            revision,
            "null for a base that is not on the Hub",
        )

    @property
    def base_is_folder(self) -> bool:
        """Whether the base is a folder of the machine on which the delta was made."""
        return self.base_model is not None and is_path(self.base_model)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, content: bytes) -> "DeltaConfig":
        """
        Read the file's bytes.

        Raises:
            `SMDError`: for what is not strict JSON (a key given twice, NaN, another encoding than UTF-8 included), for
                entries that are missing, unknown, or not what [`DeltaConfig`] takes.
        """
        try:
            entries = json.loads(
                content.decode("utf-8"), object_pairs_hook=_without_repetition, parse_constant=_refuse_constant
            )
        except (ValueError, RecursionError) as error:
            raise SMDError(
                f"{DELTA_CONFIG_NAME} cannot be read ({shown(error, quote=False)}). Expected strict JSON in UTF-8, as "
                "SparseDelta.save_pretrained writes it: the file is damaged or was edited, get it again."
            ) from error
        if not isinstance(entries, dict):
            raise SMDError(
                f"{DELTA_CONFIG_NAME} holds {shown(entries)}; expected an object, as SparseDelta.save_pretrained writes it."
            )
        # A newer format may have other entries: its number says more than they do.
        version = entries.get("format_version")
        if _is_int(version) and version == FORMAT_VERSION:
            known = {entry.name for entry in fields(cls)}
            lacking, unknown = sorted(known - entries.keys()), sorted(entries.keys() - known)
            if lacking or unknown:
                kind, names = ("lacks", lacking) if lacking else ("has the unknown entries", unknown)
                raise SMDError(
                    f"{DELTA_CONFIG_NAME} {kind} {', '.join(map(shown, names[:4]))}. Expected exactly the entries of format "
                    f"{FORMAT_VERSION}: the file is damaged or was edited, get it again."
                )
            return cls(**entries)
        raise SMDError(
            f"{DELTA_CONFIG_NAME} has the format_version {shown(version)}; this version of smd_hf reads format "
            f"{FORMAT_VERSION}. Upgrade smd_hf if the number is larger; otherwise the file is damaged: get it again."
        )


def is_path(base_model: str) -> bool:
    """Whether a base is named by the absolute path of a folder, in the one form that has no detours."""
    return os.path.isabs(base_model) and os.path.normpath(base_model) == base_model and base_model.isprintable()


def is_repo_id(name: str) -> bool:
    """Whether a base is named by something that can be the id of a model on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return len(name) <= _MAX_NAME


def shown(value: Any, quote: bool = True) -> str:
    """A value out of a file as a message may show it: on one line, without control characters, and short."""
    text = repr(value) if quote else repr(str(value))[1:-1]
    return text if len(text) <= 100 else f"{text[:100]}..."


def _require(condition: Any, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise SMDError(
            f"{DELTA_CONFIG_NAME}: {name} is {shown(value)}; expected {expected}. The delta is refused: mend the entry, or "
            "get the file again from where it was made."
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_json(value: dict[str, Any]) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return entries


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
