"""Writes the table of README.md from the JSON files of the benchmarks: `python table.py results/*.json`."""

import argparse
import json
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "README.md"
START, END = "<!-- results: written by table.py -->", "<!-- end of results -->"


def main(argv: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="What the benchmarks wrote with --json.")
    parser.add_argument("--readme", type=Path, default=README, help="The file whose table is replaced.")
    args = parser.parse_args(argv)
    text = "\n\n".join(section(json.loads(path.read_text(encoding="utf-8"))) for path in args.files)
    before, rest = args.readme.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    args.readme.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    return text


def section(document: dict[str, Any]) -> str:
    """Title, hardware and table of one benchmark."""
    tables = {
        "runtimes": runtimes,
        "throughput": throughput,
        "generation": generation,
        "peers": peers,
        "scaling": scaling,
        "ledger": ledger,
        "gpu": gpu,
    }
    rows = tables[document["benchmark"]](document)
    hardware, settings = document["hardware"], document["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in hardware["versions"].items())
    quick = " A quick run: for a look, not to be cited." if settings["quick"] else ""
    where = (
        f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} thread(s) a process, {settings['children']} children, "
        f"{settings['images']} images of 224 px in batches of {settings['batch_size']}, {settings['repeats']} repeats; "
        f"{versions}.{quick}"
    )
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return f"### {document['benchmark']}\n\n{where}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: dict[str, Any] | float | None) -> str:
    """A median with its interval, or a plain number."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        low, high = value["interval"]
        return f"{value['median']:.3g} ({low:.3g} to {high:.3g})"
    return f"{value:.3g}"


def runtimes(document: dict[str, Any]) -> list[list[str]]:
    over = ("over the limit, all weights", "norms and head", "over eager, limit", "all weights", "norms and head")
    rows = [
        ["model, runtime, precision", *over, "over PyTorch as it comes, all weights", "blocks, uniform", "by cost"]
    ]
    for name, model in document["models"].items():
        limit, eager, blocks = model["child_over_limit"], model["child_over_eager"], model.get("blocks_cost", {})
        cells = [limit["all weights"], limit["norms and head"], *(eager[which] for which in ("limit", "all weights"))]
        plain = model.get("child_over_pytorch", {}).get("all weights")
        cells += [eager["norms and head"], plain, blocks.get("uniform"), blocks.get("by cost")]
        rows.append([name, *map(number, cells)])
    return rows


def throughput(document: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["model", "images/s of children", "of the parent", "ratio (R1)", "peak memory ratio (R3)", "apply and restore"]
    ]
    for name, model in document["models"].items():
        rows.append(
            [
                name,
                number(model["child_images_per_second"]),
                number(model["parent_images_per_second"]),
                number(model["throughput_ratio"]),
                number(model["memory"]["peak_memory_ratio"]),
                number(model["shares_of_one_pass_over_a_batch"]["apply_and_restore"]) + " of a pass over a batch",
            ]
        )
    made = document["construction"]
    rows.append(
        [
            f"{made['parameters'] / 1e6:.0f} M parameters: a child is made in",
            number(made["seconds"]) + " s",
            f"{number(made['share_of_scoring'])} of scoring it on {document['settings']['fitness_images']} images",
            "",
            f"{number(made['peak_over_largest_tensor'])} of the largest tensor",
            "",
        ]
    )
    return rows


def generation(document: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "blocks, uniform", "blocks, by cost", "against the naive loop", "with halving", "by factor"]]
    for name, model in document["models"].items():
        factors = ", ".join(
            f"{way} {number(ratio['median'])}" for way, ratio in model.get("speedup_of_each_factor", {}).items()
        )
        keys = ("uniform_blocks_cost_ratio", "cost_blocks_cost_ratio", "speedup_vs_naive", "speedup_vs_naive_halving")
        rows.append([name, *(number(model[key]) if key in model else "" for key in keys), factors])
    return rows


def peers(document: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "population", "peer", "time, peer over ours", "memory, peer over ours", "error"]]
    for name, kinds in document["models"].items():
        for kind, results in kinds.items():
            for peer, row in results.items():
                if peer != "ours":
                    rows.append(
                        [name, kind, peer, number(row["time_ratio"]), number(row["memory_ratio"]), row["error"] or ""]
                    )
    return rows


def scaling(document: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "processes, spread over", "strong: time ratio", "weak: time ratio", "same bytes"]]
    for name, model in document["models"].items():
        for way, strong in model["strong"].items():
            same = "yes" if model["identical_bytes"] else "NO"
            rows.append([name, way, number(strong["time_ratio"]), number(model["weak"][way]["time_ratio"]), same])
    return rows


def ledger(document: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["model", "a generation with the ledger, over one without", "waiting for the disk, share of the time without"]
    ]
    for name, model in document["models"].items():
        rows.append([name, number(model["ledger_time_ratio"]), number(model["disk_share"])])
    return rows


def gpu(document: dict[str, Any]) -> list[list[str]]:
    rows = [["whole run", "child-images/s", "seconds", "same bytes again and after a stop"]]
    for name, run in document["models"].items():
        same = "yes" if run["identical_bytes"] else "NO"
        rows.append([name, number(run["child_images_per_second"]), number(run["seconds"]), same])
    return rows


if __name__ == "__main__":
    main()
