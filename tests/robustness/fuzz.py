"""
Hostile artifacts, many of them: every one ends in success or in a named error, and nothing else happens.

    python tests/robustness/fuzz.py --cases 100000 --json tests/robustness/results/fuzz.json

A case is a sound artifact with one to three things wrong with it (see `tampering.py`), loaded in this process. It fails

- if it raises anything but `SMDError`, or one whose message is not one printable paragraph;
- if it takes more than 10 seconds of the CPU, or makes the process grow by more than 256 MB; one that waits for two minutes
  ends the whole run, with a traceback;
- if a file is written, removed or renamed, a file outside of the artifact's folder or a pickle is opened, code beside the
  artifact is run, a connection is made or a process is started;
- if what it loads is not sound: a base that is not as it was, or weights that are not finite.

`--loader delta --case 17` runs one case again, with its error in full.
"""

import argparse
import faulthandler
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", OMP_NUM_THREADS="1")

import numpy as np
import torch
import transformers
from tampering import Artifact, lay_out, tampered
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

import smd_hf
from smd_hf import EvolutionTrainer, SMDError
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification
from smd_hf.models.checkpoints import load_weights, weights_hash
from smd_hf.parallel.processes import Processes, segment
from smd_hf.run.journal import generation_scope
from smd_hf.run.ledger import Ledger, read_header
from smd_hf.run.records import LEDGER_NAME
from smd_hf.run.resume import find_resume_point
from smd_hf.scoring.record import ScoredCell
from smd_hf.scoring.scores import Cell
from tests.plain import plain_arguments

SECONDS = 10.0
"""Time on the CPU that a case may take."""
WAIT = 120.0
"""Seconds after which a case that neither ends nor computes ends the run."""
GROWTH = 256 * 2**20
"""Bytes by which the process may grow in a case."""
ADDRESS_SPACE = 8 * 2**30
"""Bytes that the process may have in all: the machine is not what a hostile artifact ends."""

KINDS = 30
"""Of named errors, the most frequent, which are listed."""

WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
FORBIDDEN = (
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5")

# ---- What is watched -------------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """Not an `Exception`, which a loader might take for one of its own."""


class Watch:
    """
    What a loader does besides returning, seen by Python's audit events.

    Args:
        sandbox (`Path`): a folder; the artifact is in `sandbox/artifact`, and nothing else in it is to be read.
    """

    def __init__(self, sandbox: Path):
        self.sandbox = os.path.realpath(sandbox)
        self.inside = os.path.join(self.sandbox, "artifact")
        self.seen: list[str] = []
        self._active = False
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGPROF, self._end)

    @contextmanager
    def case(self) -> Iterator[None]:
        """Within it everything is watched, and ends after `SECONDS`."""
        self.seen = []
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        # A library that waits for a pipe cannot be called back.
        faulthandler.dump_traceback_later(WAIT, exit=True)
        self._active = True
        try:
            yield
        finally:
            self._active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()

    def _end(self, *_: object) -> None:
        raise TooLong(f"took more than {SECONDS:.0f} s")

    def _hook(self, event: str, args: tuple) -> None:
        if not self._active:
            return
        if event == "open":
            self._opened(*args)
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {args[:2]!r}")
        elif event in WRITES:
            self.seen.append(f"{event} {args[0]!r}")
        elif event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(self.sandbox):
            self.seen.append("runs code of the artifact")

    def _opened(self, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and name != os.devnull:
            self.seen.append(f"writes {name}")
        if name.startswith(self.sandbox):
            self._active = False
            real = os.path.realpath(name)
            self._active = True
            # Folders of links are how some tools keep plain checkpoints, which is seen when config.json has been read.
            inside = real == self.inside or real.startswith(self.inside + os.sep)
            if not inside and os.path.basename(name) != "config.json":
                self.seen.append(f"reads outside: {os.path.relpath(real, self.sandbox)}")
        elif name.startswith(("/etc/passwd", "/root", "/home")) and ".py" not in name:
            self.seen.append(f"reads {name}")
        if name.endswith(PICKLES):
            self.seen.append(f"opens a pickle: {os.path.basename(name)}")


# ---- What is loaded --------------------------------------------------------------------------------------------------


@dataclass
class Loader:
    """
    One of the loaders.

    Args:
        name (`str`): of it.
        share (`float`): of all cases.
        artifacts (list of `dict`): sound ones.
        load (`Callable`): loads from a folder and looks at what came; returns what is wrong with it, or `None`.
    """

    name: str
    share: float
    artifacts: list[Artifact]
    load: Callable[[Path], str | None]


def tiny_resnet() -> PreTrainedModel:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).eval()


def tiny_vit() -> PreTrainedModel:
    sizes = dict(image_size=8, patch_size=4, hidden_size=4, num_hidden_layers=1, num_attention_heads=2)
    return ViTForImageClassification(ViTConfig(**sizes, intermediate_size=8, num_labels=3)).eval()


def read_artifact(folder: Path) -> Artifact:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sound(model: PreTrainedModel) -> str | None:
    """What is wrong with a model's weights."""
    for name, tensor in model.state_dict().items():
        if tensor.device.type == "meta" or (tensor.is_floating_point() and bool(tensor.isnan().any())):
            return f"{name} is not sound"
    return None


def delta_loader(folder: Path) -> Loader:
    base = tiny_resnet()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    changes = [
        ("classifier.1.weight", (torch.tensor([0, 3, 7, 23], dtype=torch.int32), torch.tensor([1.0, -2.0, 0.5, 3.0]))),
        ("classifier.1.bias", (None, torch.tensor([1.0, 2.0, 3.0]))),
    ]
    record = {"fitness": -0.5, "parts": [[0, 1.0]]}
    SparseDelta.from_changes(
        base, changes, base_model="user/model", seed=1, generation=0, child=2, record=record
    ).save_pretrained(folder)

    def load(place: Path) -> str | None:
        delta = SparseDelta.from_pretrained(place)
        with delta.apply_to(base):
            fault = sound(base)
        same = all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
        return fault if same else "the base is not as it was"

    return Loader("delta", 0.65, [read_artifact(folder)], load)


def ensemble_loader(folder: Path) -> Loader:
    parent = tiny_resnet()
    names = list(dict(parent.named_parameters()))
    indices = torch.tensor([0, 5, 9], dtype=torch.int32)
    children = [
        {names[0]: (indices, torch.tensor([1.0, 2.0, 3.0]))},
        {"classifier.1.bias": (None, torch.zeros(3)), names[0]: (indices[:1], torch.tensor([0.5]))},
        {},
    ]
    SMDEnsembleForImageClassification.from_children(parent, children, [0.5, 0.25, 0.25]).save_pretrained(
        folder / "children"
    )
    whole = SMDEnsembleForImageClassification.from_models([tiny_vit(), tiny_vit()])
    whole.save_pretrained(folder / "whole")
    whole.save_pretrained(folder / "shards", max_shard_size="2KB")
    artifacts = [
        {name: content for name, content in read_artifact(folder / kind).items() if not name.endswith(".py")}
        for kind in ("children", "whole", "shards")
    ]
    return Loader("ensemble", 0.1, artifacts, lambda place: sound(smd_hf.load(place)))


def ledger_loader(folder: Path) -> Loader:
    """The `output_dir` of a run that was ended in its third generation: its ledger and its last checkpoint."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.rand(3, 8, 8, generator=generator), "labels": i % 3} for i in range(24)]
    args = plain_arguments(
        str(folder),
        population_size=2,
        num_generations=4,
        sigma=0.1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        elitism=False,
    )
    trainer = EvolutionTrainer(tiny_resnet(), args, train_dataset=rows)

    class EndInThird(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.evaluator.processes.stop.signal = signal.SIGTERM

    trainer.add_callback(EndInThird())
    with suppress(SystemExit):
        trainer.train()
    identity, scope, batches = read_header(folder / LEDGER_NAME), generation_scope(2), trainer.images.fitness
    numbers, shape = range(len(batches)), (2, 3)
    calls = [(None, None), (3, None), (None, shape)]  # plain cells, cells with logits, segments with sums
    ledger = Ledger(folder / LEDGER_NAME, Processes())
    with ledger.scope(scope):
        for num_labels, sums in calls:
            call = ledger.call(2, batches, numbers, num_labels, sums)
            for batch in numbers:
                size = min(batches.batch_size, batches.num_images - batch * batches.batch_size)
                logits = None if num_labels is None else np.zeros((size, num_labels), dtype=np.float32)
                cell = Cell(np.arange(size) % 2 == 0, 1.5, True, logits)
                scored = [ScoredCell(variant, batch, cell, np.arange(size) % 3) for variant in range(2)]
                if sums is None:
                    for each in scored:
                        call.write([each], float(size))
                else:
                    call.write(scored, 2.0 * size, segment(batch, numbers), np.ones(sums))

    def load(place: Path) -> str | None:
        point = find_resume_point(place, True, identity, 4)
        ledger = Ledger(place / LEDGER_NAME, Processes(), resumed=True)
        with ledger.scope(scope):
            for num_labels, sums in calls:
                ledger.call(2, batches, numbers, num_labels, sums)
        if point is None or point.checkpoint is None:
            return None
        load_weights(trainer.model, point.checkpoint)
        return sound(trainer.model) if weights_hash(trainer.model) == point.weights else None

    kept = ("ledger/", "checkpoint-")
    artifact = {name: content for name, content in read_artifact(folder).items() if name.startswith(kept)}
    return Loader("ledger", 0.25, [artifact], load)


def make_loaders(folder: Path) -> list[Loader]:
    """All loaders, each with its sound artifacts, which are saved in a folder on the way."""
    return [make(folder / make.__name__) for make in (delta_loader, ensemble_loader, ledger_loader)]


# ---- The cases -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How a case ended: in success (neither), with a named error, or in failure."""

    error: str | None = None
    failure: str | None = None


def run_case(loader: Loader, number: int, seed: int, watch: Watch, show: bool = False) -> Outcome:
    """One case, which is made of the loader's name, its number and the seed."""
    random = Random(f"{seed} {loader.name} {number}")
    artifact = tampered(random.choice(loader.artifacts), random)
    place = Path(watch.inside)
    lay_out(artifact, place)
    forget_peak()
    largest, error, failure = peak_memory(), None, None
    try:
        with watch.case():
            failure = loader.load(place)
    except SMDError as caught:
        error = str(caught)
        failure = fault_of_message(error) or out_of_memory(caught)
        if show:
            traceback.print_exc()
    except (Exception, TooLong) as caught:
        frame = traceback.extract_tb(caught.__traceback__)[-1]
        failure = f"{type(caught).__name__} in {Path(frame.filename).name}, {frame.name}: {str(caught)[:200]}"
        if show:
            traceback.print_exc()
    grown = peak_memory() - largest
    if grown > GROWTH:
        failure = failure or f"grew by {grown / 2**20:.0f} MB"
    if watch.seen:
        failure = failure or watch.seen[0]
    if show:
        print(
            {name: content if len(str(content)) < 3000 else str(content)[:3000] for name, content in artifact.items()}
        )
    shutil.rmtree(place)
    return Outcome(error, failure)


def forget_peak() -> None:
    """From here on, the peak is that of what follows: a process even inherits that of the one that started it."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes that were resident at most, on Linux."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def fault_of_message(message: str) -> str | None:
    """What is wrong with the message of a named error."""
    if not message.isprintable():
        return f"a message that is not one printable line: {message[:300]!r}"
    return f"a message of {len(message)} characters: {message[:200]!r}" if len(message) > 2000 else None


def out_of_memory(error: BaseException | None) -> str | None:
    """A named error that has hidden a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return f"out of memory: {str(error)[:200]}"
        error = error.__cause__ or error.__context__
    return None


def kind_of(error: str) -> str:
    """A message without what differs from case to case."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|\{[^}]*\}|\([^)]*\)", "*", error)
    text = re.sub(r"/\S+", "*", text)
    return " ".join(re.sub(r"[-\d][\w.+-]*", "#", text).split()[:9])


@contextmanager
def sandbox() -> Iterator[Path]:
    """A folder in memory, where there is one, with a secret beside the artifact."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smd-fuzz-", dir=memory) as folder:
        secret = Path(folder, "outside", "secret")
        secret.parent.mkdir()
        secret.write_text("a secret")
        yield Path(folder)


def quiet() -> None:
    """No warnings, no bars, no compiled files: what is written and said is the loaders' own."""
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="How many, over all loaders.")
    parser.add_argument("--seed", type=int, default=0, help="Of all cases.")
    parser.add_argument("--loader", help="Of this loader alone.")
    parser.add_argument("--case", type=int, help="Run this one alone and show its error. Needs --loader.")
    parser.add_argument("--json", type=Path, help="Where to write the results.")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    quiet()
    with sandbox() as folder:
        loaders = make_loaders(folder / "sound")
        if args.loader:
            loaders = [loader for loader in loaders if loader.name == args.loader]
        watch = Watch(folder)
        for loader in loaders:
            for artifact in loader.artifacts:  # sound ones load, and lazy imports are behind us
                lay_out(artifact, Path(watch.inside))
                assert loader.load(Path(watch.inside)) is None
                shutil.rmtree(watch.inside)
        if args.case is not None:
            print(run_case(loaders[0], args.case, args.seed, watch, show=True))
            return 0
        results, start = {}, time.perf_counter()
        total = sum(loader.share for loader in loaders)
        for loader in loaders:
            results[loader.name] = run_loader(loader, round(args.cases * loader.share / total), args.seed, watch)
    document = {
        "cases": sum(each["cases"] for each in results.values()),
        "failures": sum(len(each["failures"]) for each in results.values()),
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "loaders": results,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{document['cases']} cases, {document['failures']} failures, {document['seconds']} seconds")
    return 1 if document["failures"] else 0


def run_loader(loader: Loader, cases: int, seed: int, watch: Watch) -> dict:
    """Every case of one loader; prints what it comes to."""
    start, successes, errors, failures = time.perf_counter(), 0, Counter(), []
    for number in range(cases):
        outcome = run_case(loader, number, seed, watch)
        if outcome.failure is not None:
            failures.append({"case": number, "failure": outcome.failure})
            print(f"{loader.name} {number}: {outcome.failure}", flush=True)
        elif outcome.error is not None:
            errors[kind_of(outcome.error)] += 1
        else:
            successes += 1
    seconds = time.perf_counter() - start
    print(
        f"{loader.name}: {cases} cases, {successes} successes, {sum(errors.values())} named errors of {len(errors)} kinds, "
        f"{len(failures)} failures, {1000 * seconds / max(cases, 1):.1f} ms a case"
    )
    return {
        "cases": cases,
        "successes": successes,
        "named_errors": sum(errors.values()),
        "kinds": len(errors),
        "errors_by_kind": dict(errors.most_common(KINDS)),
        "failures": failures,
        "milliseconds_per_case": round(1000 * seconds / max(cases, 1), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
