"""The page of a run: as a Space without smd_hf, and in Chromium. Needs gradio: `make test-integrations`."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from smd_hf.hub.space.stage_space import stage_space
from tests.tasks import depth
from tests.tasks.each import TASKS, Small
from tests.tiny import label_names

from .clients import ROOT
from .space import SMD_HF

pytestmark = pytest.mark.integration

DEPTH = Small("depth-estimation", depth.save_depth_model, depth.make_rows, {"recombination": "best", "sigma": 0.1})
SHOWN = {name: TASKS[name] for name in ("segmentation", "detection", "zero_shot")} | {"depth": DEPTH}


@pytest.fixture(scope="module")
def app():
    from smd_hf.hub.space import app

    return app


def test_the_app_classifies_without_smd_hf(space):
    """In a process in which smd_hf cannot be imported, as on the Hub."""
    code = """
        import json, sys
        sys.modules["smd_hf"] = None
        import app
        from PIL import Image
        models = app.Models(lambda: json.load(open("space.json"))["models"], app.load_saved)
        print(json.dumps(models.classify(Image.open("example.png"))))
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=space, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [title for title, _ in results] == [
        "parent",
        "evolved",
        "ensemble",
        "ensemble, member 1",
        "ensemble, member 2",
    ]
    for _, scores in results:
        assert set(scores) == set(label_names(4)) and sum(scores.values()) == pytest.approx(1, abs=1e-4)
    [parent, evolved, *_] = [scores for _, scores in results]
    assert parent != evolved


PREDICT = """
    import json, sys
    sys.modules["smd_hf"] = None
    import app
    import numpy as np
    from PIL import Image
    settings = json.load(open("space.json"))
    task = settings["task"], settings["options"]
    models = app.Models(lambda: settings["models"], app.load_saved, lambda: task)
    for title, found in models.predict(Image.open("example.png")):
        if isinstance(found, tuple):
            found = [[region.tolist() if isinstance(region, np.ndarray) else region, name] for region, name in found[1]]
        elif not isinstance(found, dict):
            found = np.asarray(found).tolist()
        print(json.dumps([title, found]))
"""


@pytest.mark.parametrize("name", SHOWN)
def test_the_app_predicts_for_other_tasks_without_smd_hf(name, tmp_path):
    task = SHOWN[name]
    task.trainer(tmp_path / "run", task.save(tmp_path / "parent"), num_generations=1).train()
    (tmp_path / "space").mkdir()
    stage_space(tmp_path / "run", tmp_path / "space", "page", str(tmp_path / "parent"))
    assert f"- {task.tag}\n" in (tmp_path / "space" / "README.md").read_text()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(PREDICT)]
    done = subprocess.run(
        command, cwd=tmp_path / "space", env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (first, parent), (second, evolved) = map(json.loads, done.stdout.splitlines()[-2:])
    assert (first, second) == ("parent", "evolved")
    settings = json.loads((tmp_path / "space" / "space.json").read_text())
    with Image.open(tmp_path / "run" / "example.png") as picture:
        image = picture.convert("RGB")
    expected = pipeline(task.tag, model=str(tmp_path / "run"))(image, **settings["options"])
    if name == "segmentation":
        assert [label for _, label in evolved] == [each["label"] for each in expected]
        for (mask, _), each in zip(evolved, expected):
            assert np.array_equal(mask, np.asarray(each["mask"]) / 255)
    elif name == "detection":
        assert [[box, label] for box, label in evolved] == [
            [list(each["box"].values()), each["label"]] for each in expected
        ]
    elif name == "depth":
        assert np.shape(evolved) == (image.height, image.width, 3)
    else:
        assert evolved == pytest.approx({each["label"]: each["score"] for each in expected})
    assert name == "detection" or parent != evolved


class TestPage:
    def test_tables_hold_the_numbers_of_the_report(self, space_run, app):
        report = json.loads((space_run / "gain_report.json").read_text())
        [accuracy, _, _] = app.report_rows(space_run)
        assert accuracy[:3] == [
            "accuracy (%)",
            f"{100 * report['parent']['accuracy']:.2f}",
            f"{100 * report['evolved']['accuracy']:.2f}",
        ]
        assert len(app.generation_rows(space_run)) == 2 and app._plain(report["verdict"]) in app.verdict_of(space_run)

    def test_a_run_that_has_only_begun_has_a_page(self, tmp_path, space_run, app):
        assert app.report_rows(tmp_path) == [["", "", "", "", ""]]
        assert app.verdict_of(tmp_path).startswith("**0 generations finished")
        lines = (space_run / "children.jsonl").read_text().splitlines()
        (tmp_path / "children.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
        assert app.verdict_of(tmp_path).startswith("**1 generation finished")
        assert app.course_of(tmp_path).axes[0].get_xticks().tolist() == [1]

    def test_a_run_of_another_task_shows_its_own_metrics(self, tmp_path, app):
        metric = {"key": "mean_iou", "label": "mean IoU (%)", "factor": 100, "decimals": 2}
        change = {"estimate": 0.25, "interval": [0.125, 0.5]}
        report = {"metrics": [metric], "parent": {"mean_iou": 0.25}, "evolved": {"mean_iou": 0.5}}
        report |= {"difference": {"mean_iou": change}, "verdict": "significant gain"}
        (tmp_path / "gain_report.json").write_text(json.dumps(report))
        assert app.report_rows(tmp_path) == [["mean IoU (%)", "25.00", "50.00", "+25.00", "+12.50 to +50.00"]]

    def test_several_labels_of_an_image_have_probabilities_of_their_own(self, app):
        logits = torch.tensor([0.0, 2.0])
        assert app._top(logits, {0: "red", 1: "blue"}, several=True) == pytest.approx(
            {"blue": 0.8808, "red": 0.5}, abs=1e-4
        )
        assert sum(app._top(logits, {0: "red", 1: "blue"}).values()) == pytest.approx(1)

    def test_a_class_has_the_same_color_for_all_models(self, app):
        first, second = ("image", [("mask", "sky"), ("mask", "road")]), ("image", [("mask", "road"), ("mask", "car")])
        colors = app.colors_of([first, second, {"labels": 1.0}])
        assert list(colors) == ["sky", "road", "car"] and len(set(colors.values())) == 3
        assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors.values())

    def test_names_are_text(self, app):
        assert app._plain("<b>*x*</b>") == r"\<b\>\*x\*\</b\>"


# ---- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, driven by Playwright: `apt-get install chromium`."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "the tests in a browser need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def serve(command, folder, environment=None):
    """Starts a page, and returns its process and address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            return process, found[0]
    raise AssertionError("the page did not start")


def look(chromium, address, picture, screenshot):
    """Uploads a picture, and returns the texts that appear and the requests that left this machine."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    elsewhere = []
    page.on(
        "request",
        lambda request: (
            elsewhere.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None
        ),
    )
    page.goto(address)
    page.wait_for_selector("text=Predict")
    page.set_input_files("input[type=file]", str(picture))
    page.wait_for_selector("text=ensemble, member 2", timeout=120_000)
    text = page.inner_text("body")
    page.screenshot(path=str(screenshot))
    page.get_by_role("tab", name="Report").click()
    page.wait_for_selector("#gain img")
    text += page.inner_text("body")
    page.get_by_role("tab", name="Run").click()
    page.wait_for_selector("text=next parent")
    text += page.inner_text("body")
    page.close()
    return text, elsewhere


def test_the_space_in_chromium(space, chromium, tmp_path):
    environment = {"GRADIO_SERVER_PORT": "7871", "GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    process, address = serve([sys.executable, "app.py"], space, environment)
    try:
        text, elsewhere = look(chromium, address, space / "example.png", tmp_path / "space.png")
    finally:
        process.kill()
    assert all(label in text for label in label_names(4)) and "accuracy (%)" in text
    assert not elsewhere and (tmp_path / "space.png").stat().st_size > 10_000


def test_show_in_chromium(space_run, chromium, tmp_path):
    argv = ["show", str(space_run), "--parent", str(space_run.parent / "parent"), "--no_browser", "--port", "7872"]
    process, address = serve([sys.executable, "-c", SMD_HF, *argv], tmp_path, {"PYTHONPATH": str(ROOT)})
    try:
        text, elsewhere = look(chromium, address, space_run / "example.png", tmp_path / "show.png")
    finally:
        process.kill()
    assert all(label in text for label in label_names(4)) and not elsewhere


def test_masks_show_in_chromium(chromium, tmp_path):
    task = TASKS["segmentation"]
    task.trainer(tmp_path / "run", task.save(tmp_path / "parent"), num_generations=1).train()
    argv = ["show", "run", "--parent", "parent", "--no_browser", "--port", "7874"]
    process, address = serve([sys.executable, "-c", SMD_HF, *argv], tmp_path, {"PYTHONPATH": str(ROOT)})
    try:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector("text=Predict")
        page.set_input_files("input[type=file]", str(tmp_path / "run" / "example.png"))
        for title in ("parent", "evolved"):
            page.wait_for_selector(f"label:has-text('{title}')", timeout=120_000)
        page.wait_for_function("document.querySelectorAll('.image-container img').length >= 3", timeout=30_000)
        page.screenshot(path=str(tmp_path / "masks.png"))
        page.get_by_role("tab", name="Report").click()
        page.wait_for_selector("#predictions img")
        page.close()
    finally:
        process.kill()


def test_show_follows_a_run_that_is_under_way(space_run, chromium, tmp_path):
    """The page is opened on one generation; a second one, and then the report, appear by themselves."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = (space_run / "children.jsonl").read_text().splitlines(keepends=True)
    (folder / "children.jsonl").write_text(lines[0])
    process, address = serve(
        [sys.executable, "-c", SMD_HF, "show", str(folder), "--no_browser", "--port", "7873"],
        tmp_path,
        {"PYTHONPATH": str(ROOT)},
    )
    try:
        page = chromium.new_page()
        page.goto(address)
        page.wait_for_selector("text=1 generation finished")
        with open(folder / "children.jsonl", "a") as file:
            file.write(lines[1])
        page.wait_for_selector("text=2 generations finished", timeout=30_000)
        shutil.copy(space_run / "gain_report.json", folder)
        verdict = json.loads((space_run / "gain_report.json").read_text())["verdict"]
        page.wait_for_selector(f"text={verdict[:30]}", timeout=30_000)
        page.close()
    finally:
        process.kill()
    assert "by --parent" in process.stdout.read()
