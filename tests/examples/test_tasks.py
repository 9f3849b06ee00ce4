"""The example of each task runs, on a tiny model and a few images."""

import pytest

from tests.tasks.each import TASKS

from .test_scripts import SMALL, load_example

EXPECTED = {"segmentation": "of the first image", "detection": "'xmin'", "multi_label": "red:", "zero_shot": "red:"}
OPTIONS = {"detection": ["--threshold", "0"], "multi_label": ["--label_columns", "red", "green", "blue"]}


@pytest.mark.parametrize("name", TASKS)
def test_an_example_of_each_task(name, tmp_path, capsys):
    task, arguments = TASKS[name], ["--output_dir", str(tmp_path / "out"), *SMALL, *OPTIONS.get(name, [])]
    arguments += ["--model", str(task.save(tmp_path / "model"))]
    for split, rows in (("train", task.rows(10)), ("validation", task.rows(5, seed=1))):
        if name == "zero_shot":
            for number, row in enumerate(rows):
                folder = tmp_path / split / rows.features["label"].int2str(row["label"])
                folder.mkdir(parents=True, exist_ok=True)
                row["image"].save(folder / f"{number}.png")
            arguments += [f"--{split}_dir", str(tmp_path / split)]
        else:
            rows.to_parquet(tmp_path / f"{split}.parquet")
            arguments += [f"--{split}_file", str(tmp_path / f"{split}.parquet")]
    example = load_example(f"evolve_{name}")
    report = example.main(example.make_parser().parse_args(arguments))
    printed = capsys.readouterr().out
    assert report["verdict"] in printed and EXPECTED[name] in printed
    assert report["task"] == task.tag
