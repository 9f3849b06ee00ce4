"""
A process without smd_hf that loads models from the loopback Hub by their id, in the pipeline of their task.

One process serves all models of a test file, as importing transformers takes longer than a tiny model. It reads a request in each
line of its standard input, and answers in a line.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if __name__ != "__main__":  # the process itself imports nothing of the tests
    from tests.hub.server import HubServer


class Stranger:
    """
    Someone with transformers and a Hub alone.

    Args:
        hub ([`HubServer`]): where models are pushed, and loaded from.
    """

    def __init__(self, hub: "HubServer"):
        environment = {key: value for key, value in hub.environment().items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def predict(self, tag: str, folder: Path, image: Any, **options: Any) -> Any:
        """
        Pushes a folder, loads it by its id, and gives what the pipeline of the task predicts for an image: masks as their numbers of
        pixels, and arrays as lists.
        """
        image.save(folder / "asked.png")
        request = {"tag": tag, "folder": str(folder), "options": options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        assert "error" not in answer, answer["error"]
        return answer["found"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def stranger():
    """One for all models of a file."""
    with HubServer() as hub:
        made = Stranger(hub)
        yield made
        made.close()


def plain(value: Any) -> Any:
    """A pipeline's outputs as JSON holds them."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "getbbox"):  # an image
        return sum(value.histogram()[1:]) if value.mode == "L" else None
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    sys.modules["smd_hf"] = None  # pyright: ignore[reportArgumentType]
    import torch
    from huggingface_hub import HfApi
    from PIL import Image
    from transformers import pipeline

    torch.set_num_threads(1)
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        folder, name = Path(request["folder"]), f"tester/model-{number}"
        try:
            HfApi().create_repo(name)
            HfApi().upload_folder(
                repo_id=name, folder_path=folder, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.py"]
            )
            predict = pipeline(request["tag"], name, trust_remote_code=(folder / "modeling_smd_ensemble.py").exists())
            answer = {"found": plain(predict(Image.open(folder / "asked.png"), **request["options"]))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
