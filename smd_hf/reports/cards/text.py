"""
Text of a model card: escapes foreign text and formats all numbers in one place.

A card is rendered as Markdown with HTML, and others choose the names of models, data sets, labels and arguments. So the
templates escape everything that they print, except the Markdown that the filters below create.
"""

import json
import math
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

# style: (factor, format)
_STYLES = {
    "percent": (100, ".2f"),
    "points": (100, "+.2f"),
    "nats": (1, ".4f"),
    "nats_change": (1, "+.4f"),
    "level": (100, "g"),
    "count": (1, ",.0f"),
    "amount": (1, ",.1f"),
    "value": (1, ".4g"),
    "p_value": (1, ".2g"),
    "score": (1, ".3f"),
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def format_number(value: float | None, style: str) -> str:
    """
    Formats a number of the gain report for a card.

    Args:
        value (`float`, *optional*): `None` if it was not finite.
        style (`str`): `"percent"` or `"points"` (signed) of a share, `"nats"` or `"nats_change"` (signed), `"level"` of
            confidence, `"count"`, `"amount"`, `"value"`, `"p_value"`, or `"score"` of a prediction.
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    factor, form = _STYLES[style]
    return format(factor * value, form)


def plain_line(value: Any, limit: int = 300) -> str:
    """The value as one line of text, without control characters, direction characters and tokens."""
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(value))
    text = _TOKEN.sub("hf_***", " ".join(text.split()))
    return text if len(text) <= limit else text[:limit] + "..."


def escape_markdown(value: Any) -> Markup:
    """Escapes Markdown and HTML, so that they are shown as text. Do not use it at the start of a line."""
    return Markup(_SPECIAL.sub(r"\\\1", plain_line(value)))


def code_span(value: Any, in_table: bool = False) -> Markup:
    """A name as inline code. In a table, bars are escaped, because they end a cell even in code."""
    text = plain_line(value) or " "
    ticks = "`" * (_longest_run(text) + 1)
    if text.startswith("`") or text.endswith("`"):
        text = f" {text} "
    if in_table:
        text = text.replace("|", "\\|")
    return Markup(f"{ticks}{text}{ticks}")


def code_block(text: str, language: str = "") -> Markup:
    """A fenced code block. The fence is longer than any run of backticks in the text."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    return Markup(f"{ticks}{language}\n{text.rstrip(chr(10))}\n{ticks}")


def python_string(text: str) -> Markup:
    """The string as a Python literal on one line."""
    return Markup(json.dumps(text) if text.isascii() else ascii(text))


def json_text(value: Any) -> str:
    """The value of an argument as JSON. A path is cut to its last part, because a user's folders are private."""
    if isinstance(value, str):
        is_path = value.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[/\\]", value)
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value
    elif isinstance(value, dict):
        entries = {
            key: json_text(each)
            for key, each in sorted(value.items())
            if not str(key).endswith(("token", "cache_dir"))
        }
        return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in entries.items()) + "}"
    elif isinstance(value, list):
        return "[" + ", ".join(json_text(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def render(template: str, **facts: Any) -> str:
    """
    Renders a template of the package.

    Raises:
        `jinja2.UndefinedError`: if a variable is missing.
    """
    text = _environment().get_template(template).render(**facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _environment() -> Environment:
    """The templates, each compiled once: that takes longer than all else that a card needs."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value, style: Markup(format_number(value, style)),
        "code": code_span,
        "cell": lambda value: code_span(value, in_table=True),
        "block": code_block,
        "python": python_string,
        "json": json_text,
    }
    return environment


def _longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
