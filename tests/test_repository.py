"""What holds for the project as a whole: its layers, its dependencies, its benchmarks."""

import ast
import platform
import re
import subprocess
import sys
import tomllib

import pytest
import torch
import yaml

from benchmarks import memory, saving, start
from tests.conftest import ROOT, compose, shrunk

FOLDERS = ("datasets", "model", "utils")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES.append(ROOT / "run_experiment.py")
DISTRIBUTIONS = {  # import name -> distribution, where they differ
    "sklearn": "scikit-learn",
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "torch_fidelity": "torch-fidelity",
}
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
NOT_IMPORTED = {
    "hydra-submitit-launcher",
    "hypothesis",
    "mpich",
    "tensorboard",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "pytest",
}  # used by name or by others
FORBIDDEN = {  # who must not know of whom
    "model": {"datasets", "utils", "hydra", "omegaconf", "wandb", "mpi4py"},
    "datasets": {"model", "utils", "hydra", "omegaconf", "wandb", "mpi4py"},
    "utils": {"run_experiment"},
}
BASE = ("errors", "files", "streams", "table", "terminal", "version")  # right in utils/
FLOORS = (  # each imports from those before it and from nobody after it
    "base",
    "processes",
    "settings",
    "tracking",
    "runs",
    "checkpoint",
    "evaluation",
    "training",
    "report",
    "tasks",
    "run_experiment",
)


def imports(path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


def requirements() -> dict[str, str]:
    """Distribution -> version range, from pyproject.toml with all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [re.match(r"([\w.-]+)(?:\[.*\])?(.*)", item).groups() for one in lists for item in one]
    return {name: versions for name, versions in found if name != project["name"]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    wrong = imports(path) & FORBIDDEN.get(path.relative_to(ROOT).parts[0], set())
    assert not wrong, f"{path.relative_to(ROOT)} must not import {', '.join(wrong)}"


def floor(module: str) -> int:
    """On which floor of the house a module stands."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "utils" else first
    return FLOORS.index("base" if room in BASE else room)


def imported_modules(path) -> set[str]:
    """Modules of utils/ that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "utils":
            found |= {f"utils.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("utils."):
            found.add(node.module)
    return found


def test_no_room_imports_from_a_floor_above():
    checked = 0
    for path in (p for p in SOURCES if "utils" in p.parts or p.name == "run_experiment.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module == "utils.__init__":
            continue
        for other in imported_modules(path):
            assert floor(other) <= floor(module), f"{module} imports {other}"
            checked += 1
    assert checked > 200


def test_the_client_of_the_tracker_is_called_in_one_module():
    assert [p.name for p in SOURCES if "wandb" in imports(p)] == ["wandb_client.py"]


def test_the_start_imports_nothing_that_few_commands_need():
    """Each of these takes a tenth of a second and more."""
    needed = "matplotlib", "PIL.Image", "pandas", "scipy", "sklearn", "torchvision", "wandb"
    imported = "import sys, run_experiment, datasets.mnist"
    code = f"{imported}; print(*(m for m in {needed} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_requirements_are_what_is_imported():
    used = set().union(*map(imports, SOURCES)) - {*FOLDERS, "run_experiment", "__future__"}
    external = {name for name in used if name not in sys.stdlib_module_names}
    distributions = {DISTRIBUTIONS.get(name, name) for name in external}
    assert distributions == set(requirements()) - NOT_IMPORTED


def test_conda_requirements_are_the_same():
    entries = yaml.safe_load((ROOT / "conda_requirements.yaml").read_text())["dependencies"]
    *entries, from_pypi = entries  # {pip: […]} comes last
    entries += from_pypi["pip"]
    conda = dict(re.match(r"([\w-]+)(.*)", entry).groups() for entry in entries)
    python = conda.pop("python")
    assert conda.pop("pip") == ""
    expected = {CONDA_NAMES.get(n, n): v for n, v in requirements().items()}
    assert conda == expected
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python == project["requires-python"]


def test_version_and_authors_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (author,) = {each["name"] for each in (*project["authors"], *citation["authors"])}
    assert author in (ROOT / "LICENSE").read_text()
    version = project["version"]
    assert citation["version"] == version
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"version = {{{version}}}" in readme and f"author  = {{{{{author}}}}}" in readme
    assert f"title   = {{{citation['title']}}}" in readme


@pytest.mark.slow
def test_the_benchmark_measures(tmp_path):
    """Every part but memory, which takes a process for each experiment."""
    parts = ["--only", "step", "inference", "start", "gpu", "--root", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *parts, "experiment=digits_ladder"]
    found = subprocess.run(
        [*command, *shrunk("digits_ladder")], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stderr
    measured = ["matrix product", "convolution", "  if its convolutions were all", "training"]
    for measure in (*measured, "loader, .*", "evaluation, iwae", "sampling"):
        assert re.search(rf"{measure}\W+[\d,]+", found.stdout)
    assert "no MNIST" in found.stdout
    assert torch.cuda.is_available() or "not measured: no GPU" in found.stdout


@pytest.mark.slow
def test_the_benchmark_of_the_start_takes_one_step():
    arguments = ["experiment=digits_ladder", *shrunk("digits_ladder")]
    total, imports = start.first_step(arguments)
    assert 0.5 < imports < total < 120


@pytest.mark.slow
def test_the_benchmark_of_memory_measures(monkeypatch):
    overrides, cpu = ["experiment=digits_ladder", *shrunk("digits_ladder")], torch.device("cpu")
    found = memory.measure(overrides, cpu)
    assert 0.1 < found["GB resident"] < 100 and found["images/s"] > 0
    assert memory.fitting_batch(compose("digits_ladder"), cpu) == 100
    monkeypatch.setitem(memory.LIMITS, "cpu", 3e7)
    assert 1 <= memory.fitting_batch(compose("digits_ladder"), cpu) < 100


@pytest.mark.slow
def test_a_process_is_not_charged_with_its_parents_memory():
    child = "from benchmarks.measure import peak_memory; print(peak_memory())"
    parent = (
        "import subprocess, sys\n"
        "held = b'1' * 2_000_000_000\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)\n"
    )
    command = [sys.executable, "-c", parent, child]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.1 < float(found.stdout) < 1.5


FAULTS = """
import resource, sys, tempfile
from pathlib import Path
import torch
from benchmarks import measure, step
if sys.argv[1] == "returned":
    measure.disable_malloc_trim = lambda: None
settings = ["experiment=mnist_dct_ladder", "dataset.data_module.batch_size=16"]
subject = measure.Subject.create([*settings, "train.threads=1"], torch.device("cpu"), 3)
trainer = step.make_trainer(subject, Path(tempfile.gettempdir()))
for epoch in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step.train_epoch(trainer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_a_step_frees_is_used_by_the_next():
    """Page faults of the second epoch, with and without malloc's habit of returning memory."""
    found = {}
    for kind in ("kept", "returned"):
        command = [sys.executable, "-c", FAULTS, kind]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found[kind] = int(ended.stdout)
    assert found["kept"] < 0.2 * found["returned"], found


def test_the_benchmark_of_saving_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SECONDS", 0.1)
    size, copying, writing, rate = saving.cost("digits_ladder", "cpu", tmp_path)
    assert 4e6 < size < 6e6 and 0 < copying < writing and 0 < rate < 2


def test_nothing_of_ours_is_installed_under_its_common_name():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["setuptools"]["packages"] == []
