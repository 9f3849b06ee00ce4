"""
A process in which smd_hf cannot be imported, as on the machine of whoever downloads an artifact.

One process serves many models, because importing transformers takes longer than running a tiny one. It is given a folder and
a file of inputs on each line of its standard input, and writes the logits to a file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class FreshProcess:
    """
    Loads checkpoints without smd_hf.

    Args:
        folder (`Path`): where inputs and logits are exchanged; the process runs there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def logits(self, checkpoint: Path, inputs: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
        """Logits of the checkpoint on these inputs; `kwargs` go to `from_pretrained`."""
        save_file({name: value.contiguous() for name, value in inputs.items()}, self.folder / "inputs.safetensors")
        self._process.stdin.write(json.dumps({"checkpoint": str(checkpoint), "kwargs": kwargs}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        assert "error" not in answer, answer["error"]
        return load_file(self.folder / "logits.safetensors")["logits"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@torch.no_grad()
def aligned(model: torch.nn.Module) -> torch.nn.Module:
    """
    The model, with its weights in memory of their own.

    Loaded weights lie in the mapped file at odd addresses, where some convolutions (of MobileNetV2, for one) take another path
    and round otherwise: equal weights would not give equal logits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def main() -> None:
    sys.modules["smd_hf"] = None  # from here on, importing it raises ImportError
    from transformers import AutoModelForImageClassification

    for line in sys.stdin:
        request = json.loads(line)
        try:
            model = AutoModelForImageClassification.from_pretrained(request["checkpoint"], **request["kwargs"])
            aligned(model.eval())
            with torch.inference_mode():
                # Copies, for the reason above.
                output = model(**{name: value.clone() for name, value in load_file("inputs.safetensors").items()})
            logits = output.logits if "logits" in output else output[0]
            save_file({"logits": logits.contiguous()}, "logits.safetensors")
            answer = {}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
