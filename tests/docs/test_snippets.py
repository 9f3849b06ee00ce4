"""Every Python and bash snippet of README and docs runs, in a folder of images and against a loopback Hub."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.tasks import depth, detector
from tests.tasks import test_features as features
from tests.tasks import test_multi_label as multi_label
from tests.tasks import test_zero_shot as zero_shot
from tests.tasks.segmenter import make_rows, save_segmenter
from tests.test_trainer import make_dataset
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images

from .snippets import blocks, commands

ROOT = Path(__file__).parents[2]
MODEL = "timm/resnet18.a1_in1k"
SEGMENTER = "nvidia/segformer-b0-finetuned-ade-512-512"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
WITH_SNIPPETS = [
    page for page in PAGES if any(kind in ("python", "bash") for kind, _ in blocks((ROOT / page).read_text()))
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the snippets name, and the environment of a process whose Hub has their models and data sets."""
    root = tmp_path_factory.mktemp("world")
    for split, count, seed in (("train", 40, 1), ("test", 24, 2), ("others", 24, 3)):
        for number, image in enumerate(tiny_images(count, seed=seed)):
            folder = root / "photos" / split / label_names(4)[number % 4]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    make_dataset(40, 1).to_parquet(root / "train.parquet")
    make_dataset(24, 2).to_parquet(root / "test.parquet")
    (root / "run.yaml").write_text(
        f"model_name_or_path: {MODEL}\ntrain_file: train.parquet\nvalidation_file: test.parquet\noutput_dir: evolved_by_file\n"
    )
    (root / "street").mkdir()
    make_rows(12).to_parquet(root / "street" / "train.parquet")
    make_rows(8, seed=1).to_parquet(root / "street" / "test.parquet")
    for name, module in (("tags", multi_label), ("colors", zero_shot), ("cells", detector), ("rooms", depth)):
        (root / name).mkdir()
        for split, count, seed in (("train", 12, 0), ("test", 8, 1)):
            module.make_rows(count, seed).to_parquet(root / name / f"{split}.parquet")
    data = root / "hub" / "data"
    data.mkdir(parents=True)
    shutil.copy(root / "train.parquet", data / "train-00000-of-00001.parquet")
    shutil.copy(root / "test.parquet", data / "validation-00000-of-00001.parquet")
    with HubServer() as hub:
        hub.add_user("user", "hf_TokenOfTheUser")
        hub.add_repository(MODEL, save_tiny_checkpoint("timm_resnet", root / "hub-model"))
        hub.add_repository(SEGMENTER, save_segmenter(root / "hub-segmenter"))
        hub.add_repository("user/tagger", multi_label.save_tiny(root / "hub-tagger"))
        hub.add_repository("openai/clip-vit-base-patch32", zero_shot.save_two_towers(root / "hub-clip"))
        hub.add_repository("hustvl/yolos-tiny", detector.save_detector(root / "hub-detector"))
        hub.add_repository("facebook/dinov2-small", features.save_backbone(root / "hub-backbone"))
        depth_model = depth.save_depth_model(root / "hub-depth")
        hub.add_repository("depth-anything/Depth-Anything-V2-Small-hf", depth_model)
        hub.add_repository("user/photos", root / "hub", repo_type="dataset")
        environment = hub.environment("hf_TokenOfTheUser", home=root / "home")
        yield root, environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_page(world, page):
    root, environment = world
    command = [sys.executable, "-m", "tests.docs.snippets", str(ROOT / page)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, f"{page}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "snippets ran" in done.stdout


def test_the_snippets_of_the_readme_run(world):
    run_page(world, "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_the_snippets_of_a_page_run(world, page):
    run_page(world, page)


def test_commands_are_found_and_unknown_ones_are_refused():
    block = "# a comment\nsmd-hf evolve run.yaml \\\n    --seed 1  # why\ngit clone X smd_hf && cd smd_hf\n"
    assert commands(block) == [
        ["smd-hf", "evolve", "run.yaml", "--seed", "1"],
        ["git", "clone", "X", "smd_hf"],
        ["cd", "smd_hf"],
    ]
    from .snippets import run_command

    with pytest.raises(ValueError, match="nothing runs the command 'rm'"):
        run_command(None, ["rm", "-r", "evolved"])
    with pytest.raises(RuntimeError, match="exit code 2"):
        run_command(lambda argv: 2, ["smd-hf", "evolve"])
