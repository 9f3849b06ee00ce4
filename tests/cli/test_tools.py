"""Commands around a run: env, presets, inspect, compare, merge, export, completion."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback

import smd_hf
from smd_hf import EvolutionTrainer
from smd_hf.arguments.recipes import PRESETS, read_recipe
from smd_hf.artifacts import exporting
from smd_hf.cli.main import COMMANDS, main
from smd_hf.reports.saved_run import read_run
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_pixels, tiny_processor


def evolve(root, name, **arguments):
    chosen = {
        "population_size": 4, "num_generations": 2, "sigma": 0.1, "elitism": False, "use_cpu": True, "disable_tqdm": True,
        "per_device_eval_batch_size": 16, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    args = plain_arguments(str(root / name), **(chosen | arguments))
    trainer = EvolutionTrainer(
        str(root / "parent"), args, train_dataset=make_dataset(40, 1), eval_dataset=make_dataset(24, 2)
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of one parent, in `first` and `second`; the first has an ensemble and deltas."""
    root = tmp_path_factory.mktemp("runs")
    save_tiny_checkpoint("resnet", root / "parent")
    evolve(root, "first", ensemble_size=2, save_children=2)
    evolve(root, "second", seed=1, population_size=6)
    return root


def mistake(capfd, *argv):
    """The one paragraph that a command ends with."""
    assert main([str(each) for each in argv]) == 2
    [paragraph] = capfd.readouterr().err.strip().splitlines()
    return paragraph


def printed(capfd, *argv):
    assert main([str(each) for each in argv]) == 0
    return capfd.readouterr().out


def test_env_lists_versions_and_no_token(capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SecretOfEnv")
    out = printed(capfd, "env")
    assert (
        f"smd_hf           {smd_hf.__version__}" in out
        and f"torch            {torch.__version__.split('+')[0]}" in out
    )
    assert "logged in        yes" in out and "SecretOfEnv" not in out


def test_presets_shows_each_recipe_with_its_arguments(capfd):
    out = printed(capfd, "presets")
    for name in PRESETS:
        assert f"{name}: " in out
        assert all(f"--{argument} " in out for argument in read_recipe(name))
    assert "--mutable_parameters" in printed(capfd, "presets", "adapt")
    assert "Did you mean 'adapt'?" in mistake(capfd, "presets", "adpat")


def facts(out):
    """The rows of two columns that a command printed."""
    rows = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


class TestInspect:
    def test_a_finished_run(self, runs, capfd):
        out = printed(capfd, "inspect", runs / "first")
        report = json.loads((runs / "first" / "gain_report.json").read_text())
        assert {"state": "finished", "generations": "2 of 2"}.items() <= facts(out).items() and report[
            "verdict"
        ] in out
        [record, _] = read_run(runs / "first").generations
        best = min(child["nll"] for child in record["children"])
        assert f"{record['parent']['nll']:.4f}" in out and f"{best:.4f}" in out
        assert f"smd-hf merge {runs / 'first' / 'ensemble'}" in out

    def test_a_run_that_was_stopped(self, runs, tmp_path, capfd):
        shutil.copytree(runs / "second", tmp_path / "stopped")
        for name in ("gain_report.json", "model.safetensors"):
            (tmp_path / "stopped" / name).unlink()
        with open(tmp_path / "stopped" / "children.jsonl", "a") as file:
            file.write('{"generation": 2, "chil')  # the last line is being written
        out = printed(capfd, "inspect", tmp_path / "stopped")
        assert (
            "--resume continues it" in out and {"state": "stopped", "generations": "2"}.items() <= facts(out).items()
        )

    def test_a_run_that_is_under_way(self, runs, tmp_path, capfd):
        seen = []

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                seen.append(printed(capfd, "inspect", args.output_dir))

        args = plain_arguments(
            str(tmp_path),
            population_size=2,
            num_generations=1,
            sigma=0.1,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        data = {"train_dataset": make_dataset(16, 1), "eval_dataset": make_dataset(8, 2)}
        EvolutionTrainer(str(runs / "parent"), args, **data, callbacks=[Look()]).train()
        assert facts(seen[0])["state"] == "running" and "Watch it" in seen[0] and "\n         1 " in seen[0]
        assert facts(printed(capfd, "inspect", tmp_path))["state"] == "finished"

    def test_what_is_no_run_is_told_with_near_names(self, runs, capfd):
        assert f"Did you mean '{runs / 'first'}'?" in mistake(capfd, "inspect", runs / "frist")
        assert f"Did you mean '{runs / 'first'}' or '{runs / 'second'}'?" in mistake(capfd, "inspect", runs)

    def test_a_damaged_line_is_told_by_its_number(self, runs, tmp_path, capfd):
        shutil.copytree(runs / "second", tmp_path / "run")
        path = tmp_path / "run" / "children.jsonl"
        path.write_text("{}\n" + path.read_text())
        assert "Line 1 of" in mistake(capfd, "inspect", tmp_path / "run")


class TestCompare:
    def test_two_runs_and_the_arguments_that_differ(self, runs, capfd):
        out = printed(capfd, "compare", runs / "first", runs / "second")
        for name in ("first", "second"):
            report = json.loads((runs / name / "gain_report.json").read_text())
            row = next(line for line in out.splitlines() if line.startswith(f"{name} "))
            assert f"{100 * report['evolved']['accuracy']:.2f}" in row and f"{report['evolved']['nll']:.4f}" in row
        differing = [line.split() for line in out.split("argument")[1].splitlines()]
        assert ["population_size", "4", "6"] in differing and ["ensemble_size", "2", "0"] in differing
        assert not any(line[:1] == ["sigma"] for line in differing)

    def test_one_run_is_a_mistake(self, runs, capfd):
        assert "smd-hf inspect" in mistake(capfd, "compare", runs / "first")


class TestMerge:
    def test_an_ensemble(self, runs, tmp_path, capfd):
        out = printed(capfd, "merge", runs / "first" / "ensemble", "--output_dir", tmp_path)
        assert "mean of" in out
        merged = AutoModelForImageClassification.from_pretrained(tmp_path)
        expected = smd_hf.load(runs / "first" / "ensemble").merge()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, merged.state_dict()[name]), name
        assert (tmp_path / "preprocessor_config.json").is_file()

    def test_a_delta(self, runs, tmp_path, capfd):
        printed(capfd, "merge", runs / "first" / "children" / "0001", "--output_dir", tmp_path)
        pixels = tiny_pixels()
        with torch.no_grad():
            found = AutoModelForImageClassification.from_pretrained(tmp_path).eval()(pixels).logits
            assert torch.equal(found, smd_hf.load(runs / "first" / "children" / "0001")(pixels).logits)

    def test_a_plain_model_is_a_mistake(self, runs, tmp_path, capfd):
        assert "one plain model already" in mistake(capfd, "merge", runs / "first", "--output_dir", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestExport:
    @pytest.mark.parametrize("kind", ("resnet", pytest.param("vit", marks=pytest.mark.slow)))
    def test_onnx_has_the_logits_of_pytorch(self, kind, tmp_path, capfd):
        import onnxruntime

        model = save_tiny_checkpoint(kind, tmp_path / "model")
        out = printed(capfd, "export", model, "--output_dir", tmp_path / "out")
        assert "any number of images" in out and "differ from PyTorch's by at most" in out
        pixels = tiny_pixels(5, seed=7)
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
        [logits] = session.run(["logits"], {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            assert np.abs(logits - tiny_model(kind)(pixels).logits.numpy()).max() < 1e-4
        assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["0"] == "cat"

    def test_openvino_has_the_logits_of_pytorch(self, tmp_path, capfd):
        import openvino

        model = save_tiny_checkpoint("timm_convnext", tmp_path / "model")
        printed(capfd, "export", model, "--format", "openvino", "--output_dir", tmp_path / "out")
        pixels = tiny_pixels(5, seed=7)
        path = str(tmp_path / "out" / "openvino_model.xml")
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        with torch.no_grad():
            expected = tiny_model("timm_convnext")(pixels).logits.numpy()
        assert np.abs(compiled(pixels.numpy())[0] - expected).max() < 1e-4

    def test_other_logits_are_found_and_nothing_is_kept(self, tmp_path, monkeypatch):
        def wrong(program, path):
            path.write_text("a model")
            return lambda images: program.module()(torch.from_numpy(images)).detach().numpy() + 0.01

        monkeypatch.setattr(exporting, "_to_onnx", wrong)
        with pytest.raises(smd_hf.SMDError, match=r"has other logits than PyTorch's: they differ by up to 0\.01"):
            exporting.export_model(tiny_model("resnet"), tiny_processor(), "onnx", tmp_path, tolerance=1e-4)
        assert not list(tmp_path.iterdir())

    def test_an_ensemble_is_a_mistake(self, runs, tmp_path, capfd):
        assert "smd-hf merge" in mistake(capfd, "export", runs / "first" / "ensemble", "--output_dir", tmp_path)

    def test_a_package_that_is_missing_is_named_with_its_extra(self, tmp_path, capfd, monkeypatch):
        monkeypatch.setitem(exporting.NEEDED, "onnx", ("onnx", "not_installed_here"))
        text = mistake(capfd, "export", tmp_path, "--output_dir", tmp_path / "out")
        assert "needs not_installed_here" in text and "pip install 'smd-hf[onnx]'" in text


class TestCompletion:
    def test_bash_completes_commands_options_and_choices(self, tmp_path, capfd):
        script = printed(capfd, "completion", "bash")
        (tmp_path / "complete.bash").write_text(script)

        def complete(*words):
            line = " ".join(f"'{word}'" for word in words)
            code = (
                f"source complete.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
                "_shtab_smd_hf; printf '%s\\n' \"${COMPREPLY[@]}\""
            )
            return subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout.split()

        assert complete("smd-hf", "ev") == ["evolve", "evaluate"]
        assert "--population_size" in complete("smd-hf", "evolve", "--popul")
        assert set(complete("smd-hf", "evolve", "--recombination", "g")) == {"greedy_soup", "gauss_newton"}

    def test_another_shell_is_a_mistake(self, capfd):
        assert "Did you mean 'fish'?" in mistake(capfd, "completion", "fisch")


def test_near_options_and_choices_are_named(runs, tmp_path, capfd):
    assert "Did you mean '--output_dir'?" in mistake(capfd, "merge", runs / "first", "--output_dri", tmp_path)
    assert "Did you mean 'openvino'?" in mistake(
        capfd, "export", runs / "first", "--format", "openvin", "--output_dir", tmp_path
    )
    text = mistake(
        capfd, "evolve", "--model_name_or_path", "x", "--output_dir", tmp_path, "--recombination", "gaus_newton"
    )
    assert "Did you mean 'gauss_newton'?" in text


def test_near_names_come_from_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from smd_hf.models.loading_errors import similar_in_cache, similar_names

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for folder in ("models--google--vit-base", "models--other--thing", "datasets--user--photos"):
        (tmp_path / folder).mkdir()
    assert similar_in_cache("gogle/vit-base", "model") == ["google/vit-base"]
    assert similar_in_cache("user/photo", "dataset") == ["user/photos"]
    assert "google/vit-base" in similar_names("gogle/vit-base")


def test_every_command_has_a_parser_and_help(capfd):
    for command in COMMANDS:
        assert f"smd-hf {command}" in printed(capfd, command, "--help")
