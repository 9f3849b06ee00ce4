"""`smd-hf demo`: the embedded example, without network."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ..reports.gain_report import format_table
from ..reports.steps import steps_lines
from .dataclass_parsing import CommandParser
from .digits import run_demo
from .terminal import quiet_libraries


@dataclass
class DemoArguments:
    """Parameters of the demo."""

    output_dir: str = field(default="demo_output", metadata={"help": "The folder for all results."})
    seed: int = field(default=0, metadata={"help": "Seed of the splits, the parent and the evolution."})
    population_size: int = field(default=32, metadata={"help": "Number of children in each generation."})
    num_generations: int = field(default=5, metadata={"help": "Number of generations."})


def make_parser() -> CommandParser:
    return CommandParser(
        "demo",
        [DemoArguments],
        "Train a small classifier of digits, show it images from another camera, and evolve it to read them.",
    )


def run(argv: Sequence[str]) -> int:
    """
    Trains a parent, shifts the images, evolves it, and prints the before/after table.

    Raises:
        `SMDError`: for wrong arguments, or a folder that cannot be written to.
    """
    parser = make_parser()
    [arguments] = parser.parse(argv)
    quiet_libraries()
    result = run_demo(**asdict(arguments))
    report = result.report
    print(
        f"\nThe parent reads {100 * result.clean_accuracy:.2f} % of the test images as it knows them. After the shift:\n"
    )
    print(f"{format_table(report)}\n")
    print("\n".join([*steps_lines(report), ""]))
    cost = report["cost"]
    print(
        f"Evolution took {cost['seconds']:.0f} seconds and forwarded {cost['images_forwarded']:,} images, "
        f"{cost['parent_passes']:.0f} times the fitness data; no gradient was taken."
    )
    print(
        f"Checkpoints: {result.parent_dir} and {result.evolved_dir}. Figures: {', '.join(map(str, result.figures))}."
    )
    return 0
