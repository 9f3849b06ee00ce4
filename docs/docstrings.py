"""Links of docstrings in the form that Hugging Face's documentation has, [`Name`] and [`~package.Name`], for mkdocstrings."""

import re

import griffe

import smd_hf

LINK = re.compile(r"\[`(~?)([\w.]+)(\([^`]*\))?`\](?!\()")
TYPE = re.compile(r"^(\s+\w[\w, ]* \()(.+?)(\):)", re.MULTILINE)


def linked(text: str) -> str:
    """A link where the reference has the name, else the name as code."""

    def replaced(found: re.Match) -> str:
        name = found[2].rpartition(".")[2] if found[1] else found[2]
        parts = found[2].rpartition(".")[2], found[2].split(".")[0]
        public = next((part for part in parts if part in smd_hf.__all__), None)
        return f"[`{name}`][smd_hf.{public}]" if public else f"`{name}`"

    return LINK.sub(replaced, TYPE.sub(lambda found: found[1] + _plain(found[2]) + found[3], text))


def _plain(kind: str) -> str:
    """The type of an argument, which is shown as code: without links and Markdown."""
    return (
        LINK.sub(lambda found: found[2].rpartition(".")[2] if found[1] else found[2], kind)
        .replace("`", "")
        .replace("*", "")
    )


class HubLinks(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value)
