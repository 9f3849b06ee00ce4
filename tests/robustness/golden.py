"""
Golden hashes: what tiny seeded runs make, so that a change which is to change no byte can be told from one that does.

    python tests/robustness/golden.py record golden.json            # before the change
    python tests/robustness/golden.py check golden.json             # after it; exits with 1 where a hash differs
    python tests/robustness/golden.py check golden.json --only steps int8

Each run gives SHA-256 hashes of its evolved weights, of what it recorded of its children (sums over the cells of its ledger),
of the numbers in its report (without seconds), and, where it leaves them, of the ensemble's and the children's tensors and
their predictions on eight images. One thread computes, but the bytes still depend on the machine and the versions of the
libraries: record and check on the same ones. Nothing here imports from a module inside the package.
"""

import argparse
import atexit
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

TIMED = ("seconds", "runtime", "per_second", "passes", "hours")
"""Parts of the names of numbers that depend on the time taken; parts of passes are counted by their time."""

LEFT_OUT = ("versions", "arguments", "all_arguments", "crc")
"""Parts that say how a run was made, not what it found, names of arguments among them; and checksums of lines with seconds."""


def set_up() -> None:
    """One thread, no network, no cache of the user's, and this working tree's package, before anything is imported."""
    home = tempfile.mkdtemp(prefix="smd-hf-golden-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    # MKL may otherwise go by how memory is aligned.
    os.environ.update(
        MKL_CBWR="AUTO,STRICT", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HOME=home, TRANSFORMERS_VERBOSITY="error"
    )
    os.environ.pop("HF_TOKEN", None)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)


# ---- Hashes ----------------------------------------------------------------------------------------------------------


def hash_tensors(*files: Path) -> str:
    """Of all tensors in safetensors files, by name, dtype, shape and bytes."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name).contiguous()
                digest.update(f"{file.name} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_values(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float | bool | None]]:
    """Every number of a JSON value with its place, but those that depend on time."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in LEFT_OUT and not any(part in key for part in TIMED):
                yield from numbers(each, f"{path}.{key}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from numbers(each, f"{path}[{place}]")
    elif value is None or isinstance(value, bool | int | float):
        yield path, value


def hash_numbers(path: Path) -> str:
    """Of the numbers in a JSON file, or in each line of a `.jsonl` file."""
    text = path.read_text()
    content = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    found = sorted(numbers(content), key=lambda item: item[0])
    if not found:
        raise ValueError(f"There is no number in {path}.")
    return hash_values(found)


def hash_predictions(folder: Path) -> str:
    """Of the logits that a saved model, delta or ensemble gives eight random images."""
    import torch

    import smd_hf

    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = smd_hf.load(folder, trust_remote_code=True).eval()(pixel_values=pixels).logits
    return hashlib.sha256(logits.float().contiguous().numpy().tobytes()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """All that is to be the same of a run in `folder/out`."""
    out = folder / "out"
    found = {
        "weights": hash_tensors(out / "model.safetensors"),
        "predictions": hash_predictions(out),
        "children recorded": hash_numbers(out / "children.jsonl"),
        "ledger totals": hash_numbers(out / "ledger" / "finished.jsonl"),
        "report": hash_numbers(out / "gain_report.json"),
    }
    for name in ("front.json", "../evaluation.json"):
        if (out / name).is_file():
            found[name.removeprefix("../")] = hash_numbers(out / name)
    saved = [each for each in (out / "ensemble", *sorted((out / "children").glob("*/"))) if each.is_dir()]
    for place in saved:
        name = str(place.relative_to(out))
        found[f"{name} tensors"] = hash_tensors(*sorted(place.glob("*.safetensors")))
        found[f"{name} predictions"] = hash_predictions(place)
    return found


def run_all(names: list[str]) -> dict[str, dict[str, str]]:
    """The hashes of runs by name; fails where runs that are the same differ."""
    from tests.robustness.golden_runs import ALL, SAME

    unknown = sorted(set(names) - set(ALL))
    if unknown:
        sys.exit(f"No run is called {', '.join(unknown)}. There are {', '.join(ALL)}.")
    results = {}
    for name in names or ALL:
        start = time.time()
        with tempfile.TemporaryDirectory(prefix="smd-hf-golden-") as folder:
            ALL[name](Path(folder))
            results[name] = hashes(Path(folder))
        print(f"{name}: {len(results[name])} hashes, {time.time() - start:.0f} s", flush=True)
    alike = {name: results[name] for name in SAME if name in results}
    for name, found in alike.items():
        differing = differences(next(iter(alike.values())), found)
        if differing:
            sys.exit(f"{name} differs from {next(iter(alike))} in {', '.join(differing)}, but is the same run.")
    return results


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What of a run is not as it was."""
    return sorted(what for what in expected.keys() | found.keys() if expected.get(what) != found.get(what))


# ---- Commands --------------------------------------------------------------------------------------------------------


def record(path: Path, names: list[str]) -> int:
    results = run_all(names)
    path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    print(f"{sum(map(len, results.values()))} hashes of {len(results)} runs are in {path}.")
    return 0


def check(path: Path, names: list[str]) -> int:
    expected = json.loads(path.read_text())
    results = run_all(names or list(expected))
    failures = 0
    for name, found in results.items():
        for what in differences(expected.get(name, {}), found):
            failures += 1
            print(f"DIFFERS: {name}, {what}")
    print(f"{len(results)} runs were checked against {path}: {failures or 'no'} hashes differ.")
    return 1 if failures else 0


def worker(folder: Path) -> int:
    """One of two processes."""
    from tests.robustness.golden_runs import STEPS, make_trainer

    make_trainer(folder, **STEPS).train()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "check", "worker"])
    parser.add_argument("file", type=Path, help="of the hashes")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help="these runs alone")
    arguments = parser.parse_args()
    set_up()
    if arguments.command == "worker":
        return worker(arguments.file)
    return {"record": record, "check": check}[arguments.command](arguments.file, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
