"""README and docs: every command is one that the project takes; links, keys and files exist."""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import resolve_name

import pytest
import torch

from tests.commands import environment
from tests.conftest import ROOT, compose
from tests.documented import EXPERIMENT, PAGES, commands, module, overrides, shell_lines
from utils.settings import composition
from utils.settings.command_line import Command
from utils.settings.recorded import recorded_settings
from utils.settings.typed import check_words
from utils.tasks.cells import arms

ELSEWHERE = {  # how a command begins that is not checked here -> why
    "python3 -m venv": "makes an environment; .ci/run does the same",
    ". .venv/bin/activate": "enters it",
    "pip install": "fetches packages; .ci/run installs by the README's line",
    "conda env create": "fetches packages; tests/test_repository.py compares the file with pip's",
    "python -m pytest": "the tests themselves",
    "python docs/tour.py": "a test of this file runs it whole",
    "python -m tests.runs.test_published": "needs published checkpoints; its slow tests compare",
    "python -m docs.results.": "tests/report/test_results.py calls them",
    "python docs/pictures/draw.py": "tests/report/test_results.py calls it",
    "python -m docs.pictures.kept_top": "needs MNIST; it writes a picture and returns nothing",
    "python -m utils.report.matrix_page": "tests/report/test_matrix.py calls it",
    "PYTHONPATH=. python run_experiment.py --config-dir": "tests/test_extending.py runs them whole",
    "mpirun --hostfile": "Open MPI's options; what they start is said before",
    "[ $? -eq 75 ]": "needs SLURM",
    "scontrol requeue": "needs SLURM",
    "wandb ": "needs an account; tests/tracking/test_wandb_faults.py runs its agent",
    "hf upload": "needs an account",
}


def is_checked(command: str) -> bool:
    """Whether this file checks it."""
    return not command.startswith(tuple(ELSEWHERE))


DOCUMENTED = [(page.name, command) for page in PAGES for command in commands(page)]
CHECKED = list(dict.fromkeys(filter(is_checked, (command for _, command in DOCUMENTED))))


def test_every_command_is_the_projects_or_named_with_a_reason():
    for page, command in DOCUMENTED:
        ours = EXPERIMENT in shlex.split(command) or module(command)
        assert ours or not is_checked(command), f"{page}: {command}"
    for start in ELSEWHERE:
        assert any(command.startswith(start) for _, command in DOCUMENTED), start
    languages = {name for page in PAGES for name in re.findall(r"```(.*)\n", page.read_text())}
    assert languages <= {"", "bash", "sh", "python", "yaml", "bibtex"}


def test_every_shell_takes_the_commands_as_they_stand():
    """zsh refuses [0,1] and * outside quotes."""
    for page, command in filter(lambda pair: is_checked(pair[1]), DOCUMENTED):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
        assert not re.search(r"[\[\]*?{}]", bare), f"{page}: {command}"


def test_documented_commands_compose():
    """Up to where a command would read images or a checkpoint."""
    checked = [command for command in CHECKED if EXPERIMENT in shlex.split(command)]
    jobs = {tuple(job) for command in checked for job in overrides(command)}
    for job in jobs:
        check_words(list(job))
        check(job)
    assert len(checked) >= 40 and len(jobs) >= 40


def check(job: Sequence[str]) -> None:
    """What the command checks before it begins its work."""
    command = Command(composition.compose(list(job)), tuple(job))
    name = command.task.name
    if name == "train" and command.value("train.resume_id") is None:
        assert command.settings.name
    elif name in ("check_data", "matrix"):
        assert command.settings.name and (name == "check_data" or arms(command))
    elif name == "compare":
        assert command.value("runs")
    elif name == "sync":
        assert command.value("run")
    elif name != "train":
        assert command.value("checkpoint")
        kind = "cifar" if "dataset=image_folder" in job else "mnist"  # whose shape its images have
        recorded_settings(recorded(kind), job, "it", command.trusted, command.replaced)
    if name == "ood":
        assert composition.compose([f"dataset={command.composed.ood.dataset}"]).dataset


@cache
def recorded(kind: str) -> dict:
    """Settings as a checkpoint holds them."""
    return compose(f"{kind}_dct_ladder").plain


class Parsed(Exception):
    """What a module's parser made of its arguments: the names, and what is left."""


def test_documented_modules_take_their_arguments(monkeypatch):
    """`python -m …`, up to where it would measure."""
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, *given):
        raise Parsed(*parse(self, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    checked = [words for words in map(module, CHECKED) if words]
    for words in checked:
        monkeypatch.setattr(sys, "argv", words)
        program = import_module(words[0] if "." in words[0] else f"{words[0]}.__main__")
        with pytest.raises(Parsed) as parsed:
            program.main()
        names, left = parsed.value.args
        composition.compose([*getattr(names, "overrides", []), *left])
    assert len(checked) >= 5


def test_troubleshooting_quotes_what_the_project_prints():
    """Of each quotation, the parts between what differs are in some message of the code."""
    folders = (ROOT / name for name in ("datasets", "model", "utils"))
    trees = (ast.parse(file.read_text()) for f in folders for file in f.rglob("*.py"))
    texts = [node.value for tree in trees for node in ast.walk(tree) if is_text(node)]
    assert "CUDA out of memory" not in " ".join(texts)  # which is PyTorch's own
    quoted = re.findall("“(.*?)”", (ROOT / "docs" / "troubleshooting.md").read_text())
    parts = {part.strip(" :.,") for text in quoted for part in text.split("…")}
    for part in parts - {"CUDA out of memory"}:
        assert any(part in text for text in texts), part
    assert len(quoted) >= 15


LOADED = 'load_model("runs/RUN")'


@pytest.mark.parametrize("name", ["README.md", "docs/trained_models.md", "docs/latents.md"])
def test_python_about_a_trained_model_runs(name):
    """As it stands, on a model that comes along."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)
    (block,) = (block for block in blocks if LOADED in block)
    x_a, x_b = torch.rand(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = ROOT / "pretrained" / "digits_dct_ladder"
    exec(block.replace(LOADED, f'load_model("{own}")'), {"x": x_a, "x_a": x_a, "x_b": x_b})


def is_text(node: ast.AST) -> bool:
    """Whether it is a piece of text in a program."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.slow
def test_the_tour_runs_and_shows_the_stored_figures(tmp_path):
    """docs/tour.py whole, its files elsewhere."""
    source = (ROOT / "docs" / "tour.py").read_text()
    assert source.count('Path("runs/tour")') == 1
    script = tmp_path / "tour.py"
    script.write_text(source.replace('Path("runs/tour")', f'Path("{tmp_path}/shown")'))
    own = {**environment(tmp_path), "MPLBACKEND": "agg"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT / "docs", env=own, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("digits_dct_ladder", "digits_ladder"):
        bound = json.loads((ROOT / "pretrained" / name / "results.json").read_text())["bound"]
        part = done.stdout.split(f"{name}: −ELBO ")[1]
        assert float(part.split()[0]) == pytest.approx(bound["nelbo"], abs=0.02)
        shown = [float(kl) for kl in re.findall(r"KL +([\d.]+) nats,", part)]
        assert shown[: len(bound["kl"])] == pytest.approx(bound["kl"], abs=0.02)
    assert "The context is active: 5.6" in done.stdout
    aurocs = dict(re.findall(r"(\S+): AUROC ([\d.]+)", done.stdout))
    assert float(aurocs["−ELBO"]) > 0.95 > 0.6 > float(aurocs["bits"])
    shown = {path.name for path in (tmp_path / "shown").iterdir()}
    assert shown >= {"reconstructions.png", "interpolation.png", "report", "test_scores.json"}


def test_the_two_lines_of_the_readme_and_ci_agree():
    commands = shell_lines(ROOT / "README.md")
    main, tests = commands[:2]
    assert main.endswith("run_experiment.py experiment=digits_dct_ladder")
    assert tests.endswith("pip install -e '.[test]' && python -m pytest")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "install --quiet --disable-pip-version-check --editable '.[test]'" in ci
    assert "python -m pytest" in ci


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1800


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_to_what_exists(page):
    """Files, and sections by the anchors that GitHub gives them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if target.startswith("https:"):
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_settings_and_files_that_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:configs|model|datasets|utils|tests)/[\w./]*)`", text):
        if "." in path or path.endswith("/"):  # else it is a config group
            assert (ROOT / path).exists(), path
    from utils.settings.schema import KEYS

    prefixes = ("model.", "train.", "dataset.", "wandb.", "task.")
    for key in re.findall(r"`([a-z_]+\.[\w.]+)(?:=[^`]*)?`", text):
        if key.rpartition(".")[2][:1].isupper() and not key.startswith("train."):
            assert resolve_name(key)  # a class of the project
        elif key.startswith(prefixes) and not key.endswith((".py", ".safetensors")):
            known = key in KEYS or any(rule.startswith(key.rstrip(".") + ".") for rule in KEYS)
            assert known, key
