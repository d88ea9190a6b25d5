"""Evaluation and sampling: what task=test and task=sample spend their time in."""

import torch

from benchmarks.measure import Row, Subject, seconds
from utils.evaluation.bound import estimate_nll
from utils.tasks.sample import SAMPLE_BATCH

SAMPLES, IMAGES = 100, 32
GOALS = {"iwae": "≥ 800", "published": ""}


def rows(overrides: list[str], device: torch.device) -> list[Row]:
    """Image-samples per second of both estimators, images per second of samples."""
    subject = Subject.create(overrides, device, 1)
    model, settings = subject.model.eval(), subject.settings
    batches = subject.evaluation_batches(min(IMAGES, len(subject.images)))
    sampling = (SAMPLES, settings.model.is_k_paths, settings.model.is_k_per_context)
    table = []
    for estimator, goal in GOALS.items():
        duration = seconds(
            lambda e=estimator: estimate_nll(model, batches, e, *sampling, 0, lambda n: None)
        )
        rate = len(batches.images) * SAMPLES / duration
        note = f"{settings.name}, K = {SAMPLES}"
        table.append(Row(f"evaluation, {estimator}", f"{rate:,.0f} image-samples/s", goal, note))
    rate = SAMPLE_BATCH / seconds(lambda: model.sample(SAMPLE_BATCH))
    note = f"{settings.name}, batches of {SAMPLE_BATCH}"
    return [*table, Row("sampling", f"{rate:,.0f} images/s", "≥ 270", note)]
