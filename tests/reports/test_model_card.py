import contextlib
import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from smd_hf import SMDError
from smd_hf.arguments.recipes import read_recipe
from smd_hf.models.load import load_model
from smd_hf.reports.cards.metadata import inherited_entries
from smd_hf.reports.cards.model_card import KINDS, PLOTS, classify_example, render_card, save_example, write_card
from smd_hf.reports.cards.text import code_block, code_span, escape_markdown, json_text
from tests.hub.clients import run_client
from tests.hub.fixtures import hub_server  # noqa: F401
from tests.test_trainer import make_dataset, make_trainer
from tests.tiny import save_tiny_checkpoint

TOKEN = "hf_" + "s" * 34
HOSTILE = (
    "](javascript:alert(1))",
    "<script>alert(1)</script>",
    "cat\n---\nlicense: mit\n---\n# Owned",
    "`` code ` span",
    "a | b \\| c",
    "![x](http://evil.example/x.png)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; **bold** _it_ ~~s~~",
    "```\n</details>\n<img src=x onerror=alert(1)>",
    "\u202eevil",
)


class Run:
    """A real run of a tiny model: its report, and the folders of child, deltas and ensemble as the trainer left them."""

    def __init__(self, root):
        self.root = root
        out = root / "child"
        self.folders = {"child": out, "delta": out / "children", "ensemble": out / "ensemble"}
        save_tiny_checkpoint("resnet", root / "parent")
        (root / "parent" / "README.md").write_text(
            "---\nlicense: bsd-3-clause\ndatasets:\n- owner/earlier-images\n- not an id\n---\n# The parent\n"
        )
        trainer = make_trainer(
            root / "parent",
            out,
            (make_dataset(60, 1), make_dataset(40, 2)),
            num_generations=2,
            elitism=False,
            ensemble_size=4,
            save_children=2,
            hub_token=TOKEN,
        )
        trainer.train()
        self.processor = trainer.processing_class
        self.report = json.loads((out / "gain_report.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


def leaves(value):
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in (key, *leaves(each))]
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def snippet(card):
    return re.search(r"```python\n(.*?)```", str(card), re.DOTALL)[1]


def output(card):
    return re.search(r"png\):\n\n```\n(.*?)\n```\n", card.text, re.DOTALL)[1]


def execute(code):
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        exec(compile(code, "snippet", "exec"), {})
    return stdout.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_is_read_back_and_is_what_was_measured(kind, run):
    card = ModelCard.load(write_card(kind, run.folders[kind], run.report))
    data = card.data
    assert data.license == "bsd-3-clause" and data.datasets == ["owner/earlier-images"]
    assert data.base_model is None and "base_model_relation" not in data  # the parent is a folder
    assert data.pipeline_tag == "image-classification" and "gradient-free" in data.tags
    assert data.library_name == ("smd_hf" if kind == "delta" else "transformers")
    measured = {
        "child": run.report["evolved"],
        "delta": run.report["deltas"]["0000"]["scores"],
        "ensemble": run.report["ensemble"],
    }[kind]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {
        "accuracy": measured["accuracy"],
        "nll": measured["nll"],
        "expected_calibration_error": measured["calibration_error"],
    }
    assert str(run.root) not in str(card)


def numbers_of(card, report):
    """The numbers in a card's text, and those of them that are nowhere in the report."""
    text = re.sub(r"```(python|bibtex).*?```|\(https?://[^)]*\)", "", card.text, flags=re.DOTALL)
    values = leaves(report)
    numbers = [abs(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    words = " ".join(value for value in values if isinstance(value, str))
    formats = {
        format(factor * number, form)
        for number in numbers
        for factor in (1, 100)
        for form in (".4g", ".2g", "g", ".1f", ".2f", ".3f", ".4f", ".0f")
    } | {json.dumps(number) for number in numbers}
    found = re.findall(r"(?<![\w.])[-+]?(\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?)", text)
    return found, {each for each in found if each.rstrip(",").replace(",", "") not in formats and each not in words}


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_card_is_in_the_gain_report(kind, run):
    found, unknown = numbers_of(render_card(kind, run.folders[kind], run.report), run.report)
    assert len(found) > 40 and not unknown


COMMITTED = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_the_cards_in_the_repository_say_what_their_reports_say(path):
    card, report = ModelCard.load(path), json.loads(path.with_name("gain_report.json").read_text())
    found, unknown = numbers_of(card, report)
    assert len(found) > 40 and not unknown
    assert not re.search(r"[^\n]\n##+ ", card.text)
    for figure in re.findall(r"\]\((\w+\.png)\)", card.text):
        assert path.with_name(figure).is_file()


def test_the_table_of_the_gain_holds_the_reports_numbers_in_their_places(run):
    for kind, name in (("child", "evolved"), ("ensemble", "ensemble")):
        difference = run.report["difference" if kind == "child" else "ensemble_difference"]
        text = render_card(kind, run.folders[kind], run.report).text
        for key, label, factor, digits in (
            ("accuracy", "accuracy (%)", 100, 2),
            ("nll", "NLL (nats)", 1, 4),
            ("calibration_error", "calibration error (%)", 100, 2),
        ):
            line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
            printed = [float(each) for each in re.findall(r"[-+]?\d+\.\d+", line)]
            before, after = run.report["parent"][key], run.report[name][key]
            exact = [before, after, difference[key]["estimate"], *difference[key]["interval"]]
            assert printed == [round(factor * value, digits) for value in exact]
            best = min(before, after) if key != "accuracy" else max(before, after)
            bold = re.findall(r"\*\*(.*?)\*\*", line)
            assert bold == ([] if before == after else [f"{factor * best:.{digits}f}"])
        assert f"**Verdict:** {run.report['verdict'] if kind == 'child' else difference['verdict']}" in text
        assert f"p = {difference['mcnemar']['p_value']:.2g}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_runs_and_prints_what_the_card_says(kind, run, tmp_path, monkeypatch):
    card = render_card(kind, run.folders[kind], run.report)
    for folder in (run.root / "parent", run.folders[kind]):
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert execute(snippet(card)) == output(card) + "\n"
    assert card.text == ModelCard.load(run.folders[kind] / "README.md").text, "the trainer wrote another card"


def test_a_card_shows_the_plots_that_are_there_and_no_other_files(run):
    for kind, folder in run.folders.items():
        text = render_card(kind, folder, run.report).text
        shown = set(re.findall(r"\]\((?!http)([^)]*)\)", text))
        there = {name for name in [*PLOTS, "example.png", "gain_report.json"] if (folder / name).is_file()}
        # The trainer's plot of the gain is that of the evolved model and the ensemble, not of a delta.
        assert shown == (there - {"gain.png"} if kind == "delta" else there)
    assert {"gain.png", "fitness.png", "reliability.png"} < {path.name for path in run.folders["child"].iterdir()}
    assert (run.folders["ensemble"] / "ensemble_size.png").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_placeholder_no_empty_link_and_no_token(kind, run):
    text = str(render_card(kind, run.folders[kind], run.report))
    for word in ("More information", "TODO", "None", "undefined", "]()", "hf_", "{{", "{%"):
        assert word not in text, word
    assert not re.search(r"\bnan\b", text)
    assert "\n\n\n" not in text
    assert "2302.05832" in text and "## Limits" in text
    arguments = {row.split("`")[1] for row in re.findall(r"^\| `.*$", text, re.MULTILINE)}
    arguments -= {*run.report["versions"], *run.report["deltas"]}
    assert {"elitism", "num_generations", "population_size"} <= arguments
    recipe = {"preset": "smd", **read_recipe("smd")}
    left_out = {*run.report["arguments"]} - arguments - {"hub_token"}
    assert "decomposition" in left_out and "Preset: `smd`." in text
    assert all(run.report["arguments"][name] == recipe[name] for name in left_out)
    assert run.report["all_arguments"].keys() > arguments
    assert not arguments & {"output_dir", "hub_token", "hub_model_id", "push_to_hub", "max_steps"}


def test_no_file_of_a_run_holds_the_token(run):
    files = [path for path in run.root.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_the_members_of_an_ensemble_stand_beside_it(run):
    text = render_card("ensemble", run.folders["ensemble"], run.report).text
    members, ensemble = run.report["ensemble_members"], run.report["ensemble"]
    rows = {row.split(" | ")[0][2:]: row for row in text.splitlines() if row.startswith("| ")}
    for name, scores in (
        ("fittest member", members["best"]),
        ("mean member", members["mean"]),
        ("ensemble", ensemble),
    ):
        printed = [float(each) for each in re.findall(r"\d+\.\d+", rows[name])]
        exact = [100 * scores["accuracy"], scores["nll"], 100 * scores["calibration_error"]]
        assert printed == [round(value, digits) for value, digits in zip(exact, (2, 4, 2))]
    best = max(scores["accuracy"] for scores in (run.report["parent"], members["best"], members["mean"], ensemble))
    assert any(
        f"**{100 * best:.2f}**" in rows[name] for name in ("parent", "fittest member", "mean member", "ensemble")
    )
    assert f"disagree on {100 * members['diversity']['disagreement']:.2f} %" in text


def test_no_gain_is_said_as_plainly_as_a_gain(run):
    parent = run.report["parent"]
    same = run.report | {"evolved": parent, "verdict": "no significant gain: keep the parent (as it is)."}
    kept = [generation | {"chosen": "parent"} for generation in run.report["generations"]]
    text = render_card("child", run.folders["child"], same | {"generations": kept}).text
    assert "**Verdict:** no significant gain: keep the parent (as it is)." in text
    assert "these are the parent's weights" in text
    chosen = render_card("child", run.folders["child"], run.report).text
    assert "these are the parent's weights" not in chosen
    biased = run.report | {"data": run.report["data"] | {"test": {"num_images": 40, "used_to_choose": True}}}
    assert "so the numbers are optimistic" in render_card("child", run.folders["child"], biased).text
    assert "optimistic" not in chosen


def test_a_run_without_test_images_says_so(run):
    measured = {"parent", "evolved", "difference", "ensemble", "ensemble_difference", "ensemble_members", "deltas"}
    bare = {key: run.report[key] for key in run.report.keys() - measured - {"examples"}}
    cards = {kind: render_card(kind, run.folders[kind], bare) for kind in KINDS}
    assert all("nats" not in card.text and card.data.eval_results is None for card in cards.values())
    assert "no gain was measured" in cards["child"].text and "no gain was measured" in cards["ensemble"].text
    assert "not measured on the test images" in cards["delta"].text
    assert execute(snippet(cards["child"]).replace('"child"', repr(str(run.folders["child"])))) == ""


def test_names_from_outside_stay_text(run, tmp_path):
    folder = tmp_path / "a]( `b` <i> | c"
    shutil.copytree(run.folders["child"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(HOSTILE)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "gain.png").unlink()
    report = run.report | {
        "parent_name": "owner/](javascript:alert(1))<script>",
        "data": run.report["data"] | {"name": "<script>alert(1)</script>\n---\nlicense: mit"},
        "arguments": {"fitness": "x", "image_column_name": HOSTILE[4], "frozen_parameters": list(HOSTILE)},
        "fitness": HOSTILE[1],
        "inherited": {"license": "mit", "license_name": "x\n---\nlicense: gpl", "datasets": []},
        "examples": {"child": [{"label": label, "score": 0.1} for label in HOSTILE]},
    }
    card = ModelCard.load(write_card("child", folder, report))
    assert card.data.license == "mit" and card.data.base_model is None and card.data.datasets is None
    assert card.text.lstrip().startswith("# ")

    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    inline = [child for token in parsed for child in token.children or []]
    html = {re.sub(r"\s+", "", t.content) for t in [*parsed, *inline] if t.type.startswith("html")}
    allowed = ("<details><summary>Classes</summary>", "<details><summary>Generations</summary>", "</details>")
    assert html == {*allowed, "<details><summary>Versions</summary>"}
    links = {t.attrs["href"] for t in inline if t.type == "link_open"} | {
        t.attrs["src"] for t in inline if t.type == "image"
    }
    files = {"example.png", "fitness.png", "gain_report.json", "reliability.png"}
    assert links == {"https://arxiv.org/abs/2302.05832", *files}
    headings = [t.content for before, t in pairwise(parsed) if before.type == "heading_open"]
    assert headings[1:] == ["Gain", "Use", "How it was evolved", "Limits", "Citation"]
    code = {t.content for t in inline if t.type == "code_inline"}
    for name in HOSTILE[:2] + HOSTILE[3:4] + HOSTILE[5:8]:
        assert name in code
    [shown] = [t.content for t in parsed if t.type == "fence" and t.info == ""]
    assert shown == "".join(f"0.100 {label}\n" for label in HOSTILE)
    compile(snippet(card), "snippet", "exec")


def test_bars_in_names_do_not_shift_the_cells_of_a_table(run):
    report = run.report | {"arguments": {name: name for name in HOSTILE}}
    parsed = MarkdownIt("commonmark").enable("table").parse(render_card("child", run.folders["child"], report).text)
    cells = [token.content for before, token in pairwise(parsed) if before.type == "td_open"]
    # The content of a cell is as it was written but for the backslash before a bar.
    assert "`a | b \\| c`" in cells and '`"a | b \\\\| c"`' in cells


@pytest.mark.parametrize("text", [*HOSTILE, "`", "``a", "a`", " ", "", "plain", "#", "1. one", "hf_" + "a" * 34])
def test_escapes_show_the_text_itself(text):
    plain = " ".join(text.replace("\u202e", " ").split()).replace("hf_" + "a" * 34, "hf_***")
    markdown = MarkdownIt("commonmark", {"html": True})
    for made, kinds in ((code_span(text), {"code_inline", "text"}), (escape_markdown(text), {"text", "text_special"})):
        tokens = markdown.parseInline(f"x {made} y")[0].children
        assert {token.type for token in tokens} <= kinds
        assert "".join(token.content for token in tokens).split() == f"x {plain} y".split()
    [fence] = markdown.parse(code_block(text))
    assert fence.content.rstrip("\n") == text.rstrip("\n")


def test_values_of_arguments_show_no_place_and_no_token():
    values = {
        "cache_dir": "/home/me/cache",
        "token": "secret",
        "revision": "main",
        "places": ["/home/me/images/", 1.5],
    }
    assert json_text(values) == '{"places": ["images", 1.5], "revision": "main"}'
    assert json_text("C:\\Users\\me") == '"me"' and json_text("a/b") == '"a/b"' and json_text(None) == "null"
    assert "hf_aaaa" not in code_span(json_text("hf_" + "a" * 34))


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {"license": ["mit", "apache-2.0"]}),
        (
            "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
        ),
        ("---\nlicense: 'mit\n\n  ---\n\n  x'\ndatasets: [../up, imagefolder, a/b]\n---\n", {"datasets": ["a/b"]}),
        ("---\nlicense: {a: b}\ndatasets: owner/images\n---\n", {"datasets": ["owner/images"]}),
        ("---\nlicense: [\n---\n", {}),
        ("no metadata", {}),
        (None, {}),
    ],
)
def test_license_and_data_sets_are_the_parents_or_left_out(readme, expected, tmp_path):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert inherited_entries(str(tmp_path)) == expected


def test_a_timm_child_belongs_to_timm_and_a_dataset_of_the_hub_is_named(run, tmp_path, monkeypatch):
    save_tiny_checkpoint("timm_convnext", tmp_path / "child")
    names = {"name": "owner/images", "config": "plain"}
    data = run.report["data"] | names | {"test": {"num_images": 40, "used_to_choose": False, "split": "validation"}}
    report = run.report | {"data": data, "parent_name": "timm/convnext.x"}
    card = render_card("child", tmp_path / "child", report, repo_id="user/new")
    assert card.data.library_name == "timm" and {"timm", "transformers"} <= set(card.data.tags)
    assert card.data.base_model == "timm/convnext.x" and card.data.base_model_relation == "finetune"
    assert card.data.datasets == ["owner/images", "owner/earlier-images"]
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "owner/images",
        "plain",
        "validation",
    )
    assert 'timm.create_model("hf_hub:user/new", pretrained=True)' in card.text
    local = render_card("child", tmp_path / "child", report)
    monkeypatch.chdir(tmp_path)
    execute(re.findall(r"```python\n(.*?)```", local.text, re.DOTALL)[1])
    assert "[`owner/images`](https://huggingface.co/datasets/owner/images)" in card.text


def test_code_of_the_models_own_is_trusted_in_the_snippet(run, tmp_path, monkeypatch):
    save_tiny_checkpoint("custom", tmp_path / "child")
    shutil.copy(run.folders["child"] / "example.png", tmp_path / "child")
    model = load_model(tmp_path / "child", trust_remote_code=True)
    report = run.report | {
        "examples": {"child": classify_example(model, run.processor, run.folders["child"] / "example.png")}
    }
    card = render_card("child", tmp_path / "child", report)
    monkeypatch.chdir(tmp_path)
    assert "trust_remote_code=True" in snippet(card) and execute(snippet(card)) == output(card) + "\n"


def test_what_is_no_model_gets_no_card(run, tmp_path):
    with pytest.raises(SMDError, match=r"config\.json cannot be read"):
        write_card("child", tmp_path, run.report)
    with pytest.raises(SMDError, match=r"no smd_delta_config\.json"):
        write_card("delta", tmp_path, run.report)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(SMDError, match="holds list"):
        write_card("ensemble", tmp_path, run.report)
    assert not (tmp_path / "README.md").exists()


def test_the_example_holds_pixels_alone(run, tmp_path):
    with Image.open(run.folders["child"] / "example.png") as image:
        assert image.mode == "RGB" and not image.info and not image.getexif()
    exif = Image.Exif()
    exif[0x010E] = "at home"
    Image.new("L", (4, 4)).save(tmp_path / "source.jpg", exif=exif)
    with Image.open(tmp_path / "source.jpg") as image:
        assert b"at home" not in save_example(image, tmp_path).read_bytes()


@pytest.mark.slow
def test_pushed_cards_pass_the_hubs_validation_and_their_snippets_run_from_there(run, hub_server, tmp_path):  # noqa: F811
    report = run.report | {"parent_name": "tester/parent"}
    folders = {kind: str(shutil.copytree(run.folders[kind], tmp_path / kind)) for kind in KINDS}
    code = """
        import contextlib, io, re
        from huggingface_hub import HfApi, ModelCard
        from smd_hf import SparseDelta
        from smd_hf.reports.cards.model_card import write_card
        from smd_hf.models.load import load_model

        api = HfApi()
        api.create_repo("tester/parent")
        api.upload_folder(repo_id="tester/parent", folder_path=parent)
        base = load_model("tester/parent")
        child = SparseDelta.from_pretrained(folders["delta"], subfolder="0000").merge(base)
        SparseDelta.between(base, child).save_pretrained(folders["delta"] + "/0000")
        for kind, folder in folders.items():
            repo_id = f"tester/{kind}"
            write_card(kind, folder, report, repo_id=repo_id)
            api.create_repo(repo_id)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
            card = ModelCard.load(repo_id)
            card.validate()
            snippet = re.search(r"```python\\n(.*?)```", str(card), re.DOTALL)[1]
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(compile(snippet, "snippet", "exec"), {})
            result[kind] = [stdout.getvalue(), card.data.base_model, card.data.base_model_relation, snippet]
        card.data.license = "no such license"
        try:
            card.validate()
        except ValueError as error:
            result["refused"] = str(error)
    """
    result = run_client(
        code, hub_server.environment(), folders=folders, report=report, parent=str(run.root / "parent")
    )
    assert "license" in result.pop("refused")
    for (kind, (stdout, base, relation, code)), expected in zip(result.items(), ("finetune", "adapter", "merge")):
        assert (base, relation) == ("tester/parent", expected)
        assert f'"tester/{kind}"' in code and str(tmp_path) not in code
        lines = [f"{each['score']:.3f} {each['label']}" for each in run.report["examples"][kind]]
        assert stdout.splitlines() == lines
