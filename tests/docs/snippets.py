"""
Runs the snippets of a page, in order, in one process: `python -m tests.docs.snippets PAGE.md`.

Python blocks share their variables. Of bash blocks, each `smd-hf` command runs. Other commands are those in [`ELSEWHERE`].
"""

import re
import shlex
import sys
from pathlib import Path

ELSEWHERE = {
    "cd": "part of cloning",
    "git": "part of cloning",
    "pip": "installing: the packaging test installs a wheel",
    "make": "CI runs make lint, make docs and make test, and tests/cli/test_demo.py the demo",
    "torchrun": "tests/distributed",
    "docker": "needs a daemon",
    "python": "tests/examples runs the scripts",
    "jupyter": "tests/docs/test_notebook.py runs the notebook",
    "eval": "completion: tests/cli/test_completion.py",
}
RUN_BY_A_TEST_OF_ITS_OWN = {"demo"}
"""`smd-hf demo` takes a minute: tests/cli/test_demo.py."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and code of each fenced block."""
    return re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The commands of a bash block, without comments, continued lines joined."""
    joined = block.replace("\\\n", " ")
    parts = [part for line in joined.splitlines() for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def run_page(path: Path) -> int:
    """Runs all snippets, and returns how many there were. Raises for the first that fails."""
    from smd_hf.cli.main import main

    variables: dict = {"__name__": "snippets"}
    count = 0
    for language, code in blocks(path.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(path), "exec"), variables)
            count += 1
        elif language == "bash":
            for words in commands(code):
                run_command(main, words)
                count += 1
    return count


def run_command(main, words: list[str]) -> None:
    if words[0] != "smd-hf":
        if words[0] not in ELSEWHERE:
            raise ValueError(f"nothing runs the command {words[0]!r} of a snippet")
        return
    if words[1] in RUN_BY_A_TEST_OF_ITS_OWN:
        return
    code = main(words[1:])
    if code:
        raise RuntimeError(f"{shlex.join(words)} ended with exit code {code}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(f"\n{run_page(Path(sys.argv[1]))} snippets ran")
