"""Which data set on the Hub a `datasets.Dataset` was loaded from, and whether it is a whole split of it, unchanged."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

# Where `datasets` keeps what it loaded: owner___name/config/version/commit/name-split.arrow, or -00000-of-00002.arrow.
_CACHED = re.compile(r"/([^/]+)___([^/]+)/([^/]+)/[^/]+/([0-9a-f]{40})/([^/]+)\.arrow$")


@dataclass(frozen=True)
class HubSource:
    """
    A data set on the Hub.

    Args:
        whole_split (`bool`): whether the rows are all rows of the split, as they were loaded.
    """

    name: str
    config: str
    split: str
    revision: str
    whole_split: bool


def hub_source(dataset: Any) -> HubSource | None:
    """
    The data set on the Hub that the rows come from.

    Returns:
        [`HubSource`] or `None`: `None` for rows of local files, of several data sets, of a stream or in memory, and for data sets
        without an owner.
    """
    if not isinstance(dataset, datasets.Dataset) or not dataset.cache_files or dataset.split is None:
        return None
    found = [_CACHED.search(Path(each["filename"]).as_posix()) for each in dataset.cache_files]
    places = {None if match is None else match.groups()[:4] for match in found}
    place = places.pop()
    if places or place is None or place[1] != dataset.info.dataset_name:
        return None
    owner, name, config, revision = place
    split = str(dataset.split)
    # What `map` and `filter` have made lies in other files; a transform changes rows as they are read.
    as_loaded = dataset.format["type"] != "custom" and all(
        match is not None and re.fullmatch(rf"{re.escape(name)}-{re.escape(split)}(-\d+-of-\d+)?", match[5])
        for match in found
    )
    rows = (dataset.info.splits or {}).get(split)
    whole = as_loaded and rows is not None and rows.num_examples == len(dataset)
    return HubSource(f"{owner}/{name}", config, split, revision, whole)
