"""Model cards of names that may be anything: the metadata are read back as they are, and nothing of a name becomes markup."""

import json
import re
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from smd_hf.reports.cards.model_card import render_card
from smd_hf.reports.cards.text import plain_line

CARD = Path(__file__).parents[2] / "model_cards" / "resnet20-cifar10-adapt"
REPORT = json.loads((CARD / "gain_report.json").read_text())
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")

# What Markdown, HTML, YAML and templates make something of, and some plain characters.
PIECES = [
    "|",
    "\\",
    "`",
    "``",
    "<b>",
    "</details>",
    "<!--",
    "](x)",
    "![",
    "[a](http://b)",
    "---",
    "#",
    "-",
    "&lt;",
    "*",
    "_",
    "~~",
    "$",
    "'",
    '"',
    ":",
    "{{x}}",
    "{%raw%}",
    "%",
    "!!python/object",
    "http://x.y",
    "\u202e",
    "\u200b",
    "\x00",
    "\x1b[0m",
    "é",
    "日本",
    "1.",
    "null",
    "yes",
    "=",
    ">",
    "@",
    "a",
    "Z",
]
NAMES = st.lists(st.sampled_from([*PIECES, " ", "\n", "\r\n", "\t", "\u2028"]), min_size=1, max_size=8).map("".join)


def shape_of(text):
    """What a Markdown text is made of, but for the text itself."""
    parsed = PARSER.parse(text)
    inline = [child for token in parsed for child in token.children or []]
    tables = [token.type for token in parsed if token.type.startswith(("tr", "td", "th", "table"))]
    html = [token.content for token in [*parsed, *inline] if token.type.startswith("html")]
    links = sorted({str(token.attrs) for token in inline if token.type in ("link_open", "image")})
    headings = [token.content for before, token in pairwise(parsed) if before.type == "heading_open"]
    return tables, html, links, headings[1:]


def card_of(folder, label, name, value):
    """A card into which one name comes in every place that names come into; no other differs."""
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "id2label": {"0": label, "1": "dog"}}))
    report = REPORT | {
        "parent_name": f"/{name}",
        "data": REPORT["data"] | {"name": f"/{name}", "left_out": {name: 2}},
        "arguments": {name: value, "sigma": 0.1},
        "fitness": name,
        "examples": {"child": [{"label": label, "score": 0.5}]},
        "inherited": {"license": "other", "license_name": name},
    }
    return render_card("child", folder, report)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(NAMES, NAMES, NAMES)
def test_no_name_is_markup(label, name, value):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for picture in CARD.glob("*.png"):
            shutil.copyfile(picture, folder / picture.name)
        plain, card = card_of(folder, "cat", "plain", "plain"), card_of(folder, label, name, value)
    assert shape_of(card.text) == shape_of(plain.text)
    front = re.match(r"\A---\n(.*?)\n---\n", card.content, re.DOTALL)[1]
    metadata = yaml.safe_load(front)
    assert metadata == card.data.to_dict() and metadata["license_name"] == name
    assert metadata.keys() == yaml.safe_load(re.match(r"\A---\n(.*?)\n---\n", plain.content, re.DOTALL)[1]).keys()
    [model] = metadata["model-index"]
    assert model["name"] == plain_line(model["name"])
