"""An epoch's record: the keys that metrics.jsonl and W&B know, and the line on the terminal."""

import pytest

from utils.evaluation.collapse import CollapseReport
from utils.training.metrics import EpochMetrics
from utils.training.progress import Progress

REPORT = CollapseReport(
    images=16,
    posterior_samples=2,
    reconstruction=30.0,
    nelbo=42.0,
    nelbo_se=1.0,
    kl=[8.0, 4.0],
    kl_se=[0.5, 0.5],
    elements=[10, 30],
    active=[5, 15],
    active_low=[5, 15],
    active_high=[5, 15],
    collapsed=[0, 3],
)
PER_LAYER = {
    "collapse/kl_0": 8.0,
    "collapse/active_units_0": 0.5,
    "collapse/kl_1": 4.0,
    "collapse/active_units_1": 0.5,
}
TRAINING = ["loss", "reconstruction", "kl", "grad_norm", "images_per_second"]


def epoch(progress: Progress) -> EpochMetrics:
    """Of the epoch that `progress` is in, with a validation loss of 0.5 bits/dim."""
    means = progress.means(batch_size=8)
    return EpochMetrics(
        3,
        progress.step,
        progress.skipped,
        progress.seconds,
        1.0,
        0.01,
        means,
        0.5,
        REPORT,
        0.4,
        PER_LAYER,
    )


def test_an_epoch_is_recorded_under_its_known_keys():
    progress = Progress(seconds=2.0)
    progress.record_losses([1.0, 20.0, 3.0, 1.0], norm=4.0)
    progress.record_losses([3.0, 30.0, 5.0, 2.0], norm=2.0)
    values = epoch(progress).tracker_values()
    assert list(values) == [
        *("train/skipped_steps", "train/seconds", "train/beta", "train/lr"),
        *(f"train/{name}" for name in TRAINING),
        *("val/loss", "val/nelbo", "val/reconstruction", "val/kl", "val/active_units"),
        *("collapse/kl_0", "collapse/active_units_0", "collapse/kl_1", "collapse/active_units_1"),
    ]
    assert [values[f"train/{name}"] for name in TRAINING] == [2.0, 25.0, 5.5, 3.0, 8.0]
    assert values["val/kl"] == 12.0 and values["val/active_units"] == 0.4


def test_an_epoch_without_a_finite_step_has_no_training_means():
    metrics = epoch(Progress(step=5, skipped=5))
    assert not any(f"train/{name}" in metrics.tracker_values() for name in TRAINING)
    assert "  ".join(text for text, _ in metrics.terminal_fields(3723.0, improved=False)) == (
        "epoch    3  train nan  val 0.5000 bits/dim  = 42.00 nats  (reconstruction 30.00 + "
        "KL 12.00)  active 40%  0 images/s  left 1:02:03  skipped 5"
    )


@pytest.mark.parametrize(("loss", "improved"), [(0.4, True), (0.5, False), (0.6, False)])
def test_the_lowest_validation_loss_is_remembered(loss, improved):
    progress = Progress(epoch=2, batch=7, step=21, best=0.5, best_epoch=1, seconds=3.0, sums=[1.0])
    assert progress.end_epoch(loss) is improved
    assert (progress.epoch, progress.batch, progress.seconds, progress.sums) == (3, 0, 0.0, [])
    assert (progress.best, progress.best_epoch) == ((0.4, 3) if improved else (0.5, 1))
