"""The model card of an exported model: front matter as the Hub reads it, and a page."""

from typing import Any

import yaml

from model.estimators import ESTIMATORS
from model.objective import bits_per_dim
from utils.evaluation.record import ScoreRecord
from utils.report.tables import layer_table, score_table
from utils.table import Table

LIBRARY, TASK = "dct-ladder-vae", "unconditional-image-generation"
PAPER = "[arXiv 2302.09976](https://arxiv.org/abs/2302.09976)"


def model_card(record: ScoreRecord, epochs: int | None, license: str, has_report: bool) -> str:
    """The text of README.md; the scores are the record's."""
    front = yaml.safe_dump(front_matter(record, license), sort_keys=False, allow_unicode=True)
    context = "with a DCT context as its top latent" if record.context else "without a context"
    length = f" for {epochs} epochs" if epochs else ""
    report = "\nWhat each layer carries: `report/report.html`.\n" if has_report else ""
    return f"""---
{front}---

# {record.name}

A ladder VAE {context} (Kuzina & Tomczak 2023, {PAPER}), trained on {record.dataset}{length}
(seed {record.seed}). Parameters: {record.parameters.get("parameters/all", 0):,}.

```python
from utils.checkpoint import load_model  # in a checkout of {LIBRARY}

model, config = load_model("THIS FOLDER, OR hf://ITS/NAME")
model.sample(16)  # (16, C, H, W) in [-1, 1]
```

## Scores

{_markdown(score_table(record))}

{_estimators(record)}± is the half-width of a 95 % interval over the images.

{_markdown(layer_table(record))}
{report}"""


def front_matter(record: ScoreRecord, license: str) -> dict[str, Any]:
    """License, library, data set and results, as the Hub's model cards name them."""
    return {
        "license": license,
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "datasets": [record.dataset],
        "tags": ["vae", "hierarchical-vae", "posterior-collapse", "diffusion-prior"],
        "model-index": [{"name": record.name, "results": [_results(record)]}],
    }


def _estimators(record: ScoreRecord) -> str:
    """What the record's estimators are, a line each."""
    names = [e.estimator for e in record.likelihoods if e.estimator in ESTIMATORS]
    return "".join(f"`{name}`: {ESTIMATORS[name].description}.\n" for name in names)


def _results(record: ScoreRecord) -> dict[str, Any]:
    metrics = [_metric("−ELBO (nats per image)", "nelbo", record.bound.nelbo)]
    for estimate in record.likelihoods:
        known = ESTIMATORS.get(estimate.estimator)
        bound = known and (", bound" if known.is_bound else ", no bound")
        how = f"{estimate.estimator}, K = {estimate.num_samples}{bound or ''}"
        bits = bits_per_dim(estimate.nll, record.dims)
        metrics.append(_metric(f"−log p(x) (nats per image; {how})", "nll", estimate.nll))
        metrics.append(_metric(f"bits per dimension ({how})", "bpd", bits))
    active = 100.0 * record.bound.active_units
    metrics.append(_metric("active units (%)", "active_units", active))
    return {
        "task": {"type": TASK, "name": "density estimation"},
        "dataset": {"name": record.dataset, "type": record.dataset, "split": record.split},
        "metrics": metrics,
    }


def _metric(name: str, kind: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(value, 5)}


def _markdown(table: Table) -> str:
    """Caption, and the table with every column."""
    header = [column.name for column in table.columns]
    rows = [header, ["---"] * len(header), *([cell.text for cell in row] for row in table.rows)]
    return "\n".join([table.caption, "", *(f"| {' | '.join(row)} |" for row in rows)])
