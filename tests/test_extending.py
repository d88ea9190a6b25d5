"""How to add something: a class of one's own, a YAML file that names it, and a choice.

tests/extending/parts.py has a class of each kind, tests/extending/configs a file for each; nothing
in the project names them. One command then trains with all of them.
"""

import json
import math
import re
import shlex
import subprocess

import pytest
import torch

from tests.commands import COMMAND, call, environment, only_run
from tests.conftest import ROOT, shrunk
from utils.checkpoint import load_model

OWN = ROOT / "tests" / "extending"
CHOSEN = [
    "dataset=stripes",
    "model.ctx_size=2",
    "+model/decoder/context=mean",
    "model/decoder/z_L_prior=uniform",
    "+model/objective=top_heavy",
    "+estimators=best",
    "+metrics=bits",
    "+trackers=csv",
    "task.estimators=[iwae,best]",
]
SMALL = [one for one in shrunk("digits_dct_ladder") if "z_L_prior" not in one]
SMALL += ["train.max_epochs=1", "task.mi_images=4", "wandb.setup.mode=disabled"]


@pytest.mark.slow
def test_one_class_and_one_file_add_a_part_of_every_kind(tmp_path):
    files = {path.stem for path in (OWN / "configs").rglob("*.yaml")}
    assert len(files) == 7
    arguments = ["--config-dir", str(OWN / "configs"), "experiment=digits_dct_ladder"]
    output = call(tmp_path, *arguments, *CHOSEN, *SMALL).stdout
    run = only_run(tmp_path)

    # The data set and the model's parts are what was trained, and load again once they are named.
    targets = [f"{key}={value}" for key, value in own_targets(run)]
    model, settings = load_model(run, targets)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    trainable, _ = load_model(run, targets, trainable=True)
    assert all(p.requires_grad for p in trainable.parameters())
    names = (model.decoder.context, model.decoder.context_prior)
    assert [type(part).__name__ for part in names] == ["MeanContext", "UniformPrior"]
    assert settings.dataset.name == "stripes" and settings.model.objective.weight == 2.0

    # The new figures are in the epoch's record, the scores, the tables and the page.
    (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    layers = range(model.num_latents)
    assert all(f"collapse/bits_{layer}" in row for layer in layers)
    found = json.loads((run / "results.json").read_text())
    assert [entry["estimator"] for entry in found["likelihoods"]] == ["iwae", "best"]
    iwae, best = (entry["nll"] for entry in found["likelihoods"])
    assert best < iwae
    bound = found["bound"]
    bits = [kl / n / math.log(2) for kl, n in zip(bound["kl"], bound["elements"], strict=True)]
    assert found["metrics"]["bits"] == pytest.approx(bits)
    page = (run / "report" / "report.html").read_text()
    for shown in ("bits a unit", "best"):
        assert shown in output and shown in page
    assert "the largest of each ten weights" in page

    # The tracker has the same figures as the run's own record.
    lines = dict(line.split(",")[1:] for line in (run / "metrics.csv").read_text().splitlines())
    assert {key: float(value) for key, value in lines.items()} == {
        key: value for key, value in row.items() if key not in ("epoch", "step")
    }


def own_targets(run) -> list[tuple[str, str]]:
    """What the checkpoint's settings name of tests/extending."""
    from utils.settings.trust import targets

    content = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    return [(k, v) for k, v in targets(content["config"]) if v.startswith("tests.extending")]


def test_the_readme_has_an_example_of_the_page():
    """Its Python, its YAML file and its command, which the next test runs."""
    page, readme = ((ROOT / name).read_text() for name in ("docs/extending.md", "README.md"))
    blocks = re.findall(r"```(python|yaml|sh)\n(.*?)```", readme, re.S)
    shown = [text for _, text in blocks if "MeanContext" in text or "context=mean" in text]
    assert len(shown) == 3
    assert all(text.removeprefix("import torch\n") in page for text in shown)


@pytest.mark.slow
def test_the_examples_of_the_page_train(tmp_path):
    """docs/extending.md: its Python, its YAML files and its commands, as they stand there."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
    parts = [text for language, text in blocks if language == "python"]
    (tmp_path / "my_parts.py").write_text("\n\n".join(parts))
    for text in (text for language, text in blocks if language == "yaml"):
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = [shlex.split(text) for language, text in blocks if language == "sh"]
    assert (len(parts), len(lines)) == (3, 2)
    ends = ("train.max_epochs=1", "model.is_k=2", "task.report=false", "wandb.setup.mode=disabled")
    for line in lines:
        arguments = line[line.index("run_experiment.py") + 1 :]
        command = [*COMMAND, *arguments, *ends]
        own = {**environment(tmp_path), "PYTHONPATH": str(tmp_path)}
        subprocess.run(command, cwd=tmp_path, env=own, check=True, timeout=240)
    assert len(list((tmp_path / "runs").glob("*/results.json"))) == 2
