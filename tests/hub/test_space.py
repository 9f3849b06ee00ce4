"""The Space of a run: what is pushed to a loopback Hub. tests/hub/test_space_page.py runs it."""

import json
import re
import shutil

import pytest

from smd_hf.cli.main import main
from smd_hf.errors import SMDError
from smd_hf.hub.space.stage_space import page_models, page_task, stage_space


@pytest.mark.slow
def test_a_space_holds_page_models_and_report_and_nothing_else(space_run, space):
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()} - {".gitattributes"}
    models = {name for name in names if name.startswith("models/")}
    assert names - models == {
        "README.md", "app.py", "requirements.txt", "space.json", "gain_report.json", "children.jsonl", "example.png", "gain.png",
        "fitness.png", "reliability.png", "ensemble_size.png",
    }  # fmt: skip
    for place in ("parent", "evolved", "ensemble"):
        assert f"models/{place}/config.json" in models
    assert not [name for name in models if re.search(r"ledger|checkpoint|training_args|gain_report", name)]
    card = (space / "README.md").read_text()
    assert card.startswith("---\ntitle: page\n") and "sdk: gradio\n" in card and "app_file: app.py\n" in card
    required = (space / "requirements.txt").read_text()
    assert re.search(r"^transformers==", required, re.MULTILINE) and "gradio" not in required
    assert str(space_run.parent) not in (space / "space.json").read_text()


class TestTask:
    def test_a_run_of_another_task_names_it_and_its_candidate_labels(self, tmp_path):
        assert page_task(tmp_path) == ("image-classification", {})
        options = {"candidate_labels": ["red", "blue"], "hypothesis_template": "a {} photo"}
        report = {"task": "zero-shot-image-classification", "zero_shot": options}
        (tmp_path / "gain_report.json").write_text(json.dumps(report))
        assert page_task(tmp_path) == ("zero-shot-image-classification", options)

    def test_a_task_without_a_page_is_refused(self, tmp_path):
        (tmp_path / "gain_report.json").write_text(json.dumps({"task": "image-feature-extraction"}))
        with pytest.raises(
            SMDError, match=r"is a run of image-feature-extraction, and the page shows image-class.*smd-hf inspect"
        ):
            page_task(tmp_path)


class TestStaging:
    def test_the_parent_is_found_or_given(self, space_run, tmp_path):
        assert [entry["title"] for entry in page_models(space_run)] == ["evolved", "ensemble"]
        assert page_models(space_run, "user/parent")[0] == {"title": "parent", "repo_id": "user/parent"}
        shutil.copytree(space_run, tmp_path / "run")
        shutil.copytree(space_run.parent / "parent", tmp_path / "run" / "parent")
        assert page_models(tmp_path / "run")[0]["folder"] == tmp_path / "run" / "parent"

    def test_a_parent_on_the_hub_is_named_and_not_copied(self, space_run, tmp_path):
        (tmp_path / "staged").mkdir()
        stage_space(space_run, tmp_path / "staged", "page", "user/parent")
        settings = json.loads((tmp_path / "staged" / "space.json").read_text())
        assert settings["models"][0] == {"title": "parent", "repo_id": "user/parent"}
        assert "models:\n- user/parent\n" in (tmp_path / "staged" / "README.md").read_text()

    @pytest.mark.parametrize(
        "argv, text",
        (
            ([], "Expected either --repo_id user/name"),
            (["--space", "a/b", "--repo_id", "a/b"], "Expected either --repo_id user/name"),
            (["--space", "a/b", "--create_pr"], "--create_pr is for models"),
        ),
    )
    def test_mistakes(self, space_run, argv, text, capfd):
        assert main(["push", str(space_run), *argv]) == 2
        assert text in capfd.readouterr().err


def test_a_page_without_gradio_says_what_to_install(space_run, capfd, monkeypatch):
    from smd_hf.cli import show

    monkeypatch.setattr(show.importlib.util, "find_spec", lambda name: None)
    assert main(["show", str(space_run)]) == 2
    assert "pip install 'smd-hf[space]'" in capfd.readouterr().err
