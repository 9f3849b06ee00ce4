"""The names of a model's classes, where its configuration lacks them or contradicts itself."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..errors import SMDError


def name_classes(config: PreTrainedConfig, what: str, stored: Mapping[str, Any] | None = None) -> None:
    """
    Names every class, in place: `LABEL_0`, `LABEL_1`, ... if there are no names, as transformers does.

    Most configurations derive num_labels from the names. PVT's stores it separately, 1000 by default, whatever
    the names are.
    """
    names, count = config.id2label, config.num_labels
    if names is None:
        names = [f"LABEL_{number}" for number in range(count or 0)]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    elif len(names) != count and stored is not None and "num_labels" not in stored:
        config.num_labels = len(names)
    elif len(names) != count:
        raise SMDError(
            f"The configuration of {what} has {count} classes (num_labels) and {len(names)} names for them (id2label). "
            "Expected one name for each class: correct num_labels or id2label, whichever does not fit the classifier's weights."
        )
