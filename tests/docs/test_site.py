"""The site: complete, strictly built, and readable without network."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import smd_hf
from smd_hf import EvolutionArguments
from smd_hf.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))


def reference() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))


def test_every_public_name_has_its_reference():
    text = reference()
    missing = [name for name in smd_hf.__all__ if f"::: smd_hf.{name}" not in text and f"`smd_hf.{name}`" not in text]
    assert not missing


def test_every_argument_is_in_the_tables():
    import hooks

    tables = hooks.arguments_tables()
    for argument in fields(EvolutionArguments):
        assert tables.count(f"\n| `{argument.name}` |") == 1, argument.name
    row = next(line for line in tables.splitlines() if line.startswith("| `population_size` |"))
    assert row.startswith(
        "| `population_size` | <code>int</code> | <code>by preset</code> | Number of children in each generation"
    )


def test_every_command_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert all(f"\n## {command}\n" in text for command in COMMANDS)


def test_every_page_is_in_the_navigation():
    text = (ROOT / ".mkdocs.yml").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert not [page for page in pages if f": {page}\n" not in text]


def test_links_of_docstrings_lead_to_the_reference():
    import docstrings

    assert (
        docstrings.linked("a [`~smd_hf.load`], a [`EvolutionTrainer`]")
        == "a [`load`][smd_hf.load], a [`EvolutionTrainer`][smd_hf.EvolutionTrainer]"
    )
    assert docstrings.linked("an inner [`Thing`] and [`~a.b.Thing`]") == "an inner `Thing` and `Thing`"
    assert (
        docstrings.linked("    args ([`~a.Thing`] or `str`, *optional*): a [`Thing`].")
        == "    args (Thing or str, optional): a `Thing`."
    )
    assert docstrings.linked("[`a link`](elsewhere)") == "[`a link`](elsewhere)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        ".mkdocs.yml",
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:[^"' >]+)""", text)
        loaded += re.findall(
            r"""<link[^>]*rel=["']?(?:stylesheet|preload|icon)[^>]*href=["']?(https?:[^"' >]+)""", text
        )
        assert not loaded, (page.name, loaded)


@pytest.mark.slow
def test_the_reference_shows_signatures_and_texts(site):
    trainer = (site / "reference" / "trainer.html").read_text()
    for text in (
        'id="smd_hf.EvolutionTrainer"',
        'id="smd_hf.EvolutionTrainer.train"',
        "resume_from_checkpoint",
        "preprocess_logits_for_metrics",
    ):
        assert text in trainer
    arguments = (site / "reference" / "arguments.html").read_text()
    for argument in fields(EvolutionArguments):
        assert f"<code>{argument.name}</code>" in arguments
    assert "[`" not in re.sub(r"<[^>]*>", "", trainer)


def test_the_configuration_names_no_font_of_a_server():
    text = re.sub(r"!!python/\S+", "", (ROOT / ".mkdocs.yml").read_text())
    assert yaml.safe_load(text)["theme"]["font"] is False
