"""The commands of README and docs, as a reader copies them."""

import re
import shlex
from pathlib import Path

from tests.conftest import ROOT
from utils.settings.typed import FLAGS_WITH_VALUE

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = "python|python3|pip|conda|mpiexec|mpirun|torchrun|srun|wandb|hf"
EXPERIMENT = "run_experiment.py"


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continuation lines joined, without comments."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


def commands(page: Path) -> list[str]:
    """Each command of the shell blocks, and of the text, where it begins with a program's name."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    inline = re.findall(rf"`((?:{PROGRAMS})\s[^`]+)`", text)
    lines = [*shell_lines(page), *(" ".join(command.split()) for command in inline)]
    return [part.strip() for line in lines for part in line.split("&&")]


def overrides(command: str) -> list[list[str]]:
    """Each job of a command with run_experiment.py; of a sweep as many as name every value."""
    words = shlex.split(command)
    words = iter(words[words.index(EXPERIMENT) + 1 :])
    given, sweep = [], False
    for word in words:
        if word in FLAGS_WITH_VALUE:
            next(words)
        elif word.startswith("-"):
            sweep = sweep or word in ("-m", "--multirun")
        else:
            given.append(word)
    if not sweep:
        return [given]
    pairs = [override.partition("=") for override in given]
    choices = [[f"{key}={value}" for value in values.split(",")] for key, _, values in pairs]
    jobs = max(map(len, choices))
    return [[values[job % len(values)] for values in choices] for job in range(jobs)]


def module(command: str) -> list[str] | None:
    """The module and the arguments of a command with `python -m`."""
    _, found, after = command.partition("python -m ")
    return shlex.split(after) if found else None
