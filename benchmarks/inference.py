"""Evaluation and sampling: what task=test and task=sample spend their time in."""

import torch

from benchmarks.measure import Row, Subject, seconds
from utils.evaluation.bound import estimate_nll
from utils.tasks.sample import SAMPLE_BATCH

SAMPLES, IMAGES, REPEATS = 100, 32, 3
GOALS = {"iwae": "≥ 800", "published": ""}


def rows(overrides: list[str], device: torch.device) -> list[Row]:
    """Image-samples per second of both estimators, images per second of samples."""
    subject = Subject.made(overrides, device, 1)
    model, settings = subject.model.eval(), subject.settings
    batches = subject.held_out(min(IMAGES, len(subject.images)))
    paths = settings["model"]["is_k_prior"]
    made = []
    for estimator, goal in GOALS.items():
        took = seconds(
            lambda e=estimator: estimate_nll(model, batches, e, SAMPLES, paths, 0, lambda n: None),
            device,
            REPEATS,
        )
        rate = len(batches.images) * SAMPLES / took
        note = f"{settings['name']}, K = {SAMPLES}"
        made.append(Row(f"evaluation, {estimator}", f"{rate:,.0f} image-samples/s", goal, note))
    took = seconds(lambda: model.sample(SAMPLE_BATCH), device, REPEATS)
    note = f"{settings['name']}, batches of {SAMPLE_BATCH}"
    return [*made, Row("sampling", f"{SAMPLE_BATCH / took:,.0f} images/s", "≥ 270", note)]
