"""A score as tables on the terminal."""

from pathlib import Path

from model.objective import bits_per_dim
from utils.evaluation.collapse import ACTIVE_THRESHOLD, CollapseReport
from utils.terminal import Terminal


def show(terminal: Terminal, found: dict) -> None:
    """Two tables: the scores, and the layers."""
    report = CollapseReport(**found["bound"])
    scores = [("elbo", report.nelbo, report.nelbo_se, 1, "")]
    for entry in found["likelihoods"]:
        values = [entry[key] for key in ("estimator", "nll", "nll_se", "num_samples")]
        scores.append((*values, f"{entry['ess']:.1f}"))
    paths = {entry["prior_samples"] for entry in found["likelihoods"]} - {None}
    terminal.table(
        f"{found['name']}: {report.images:,} images; {found['protocol']}"
        + "".join(f"; p(u) in iwae from {n} diffusion paths" for n in paths)
        + "\npublished: what the published code computes, for its tables; not a bound",
        ["split", "estimator", "K", "ESS", "nll (nats)", "bits/dim", "recon.", "KL", "active"],
        [
            [
                found["split"],
                title,
                str(samples),
                ess,
                f"{nll:.2f} ± {error:.2f}",
                f"{bits_per_dim(nll, found['dims']):.4f}",
                f"{report.reconstruction:.2f}",
                f"{sum(report.kl):.2f}",
                f"{report.active_units:.1%}",
            ]
            for title, nll, error, samples, ess in scores
        ],
    )
    if found["quality"]:
        terminal.line(quality_line(found["quality"]))
    layers = zip(report.elements, report.kl, report.kl_share, report.active_per_layer, strict=True)
    terminal.table(
        f"Layers from the top; a unit is active where Var_x(E[z | x]) > {ACTIVE_THRESHOLD:g}, "
        f"from {report.passes} passes",
        ["layer", "", "units", "KL (nats)", "share of KL", "bits/unit", "active"],
        [
            [
                str(layer),
                "context" if found["context"] and layer == 0 else "",
                str(units),
                f"{kl:.3f}",
                f"{share:.1%}",
                f"{bits_per_dim(kl, units):.4f}",
                f"{active:.1%}",
            ]
            for layer, (units, kl, share, active) in enumerate(layers)
        ],
    )


def show_finished(found: dict, folder: Path, terminal: Terminal) -> None:
    """The scores of a run that was finished before."""
    show(terminal, found)
    terminal.line(f"Finished before, in {folder}; task.force=true trains it again.")
    if not (folder / "report" / "report.json").exists():
        terminal.line(f"It has no report: task=report checkpoint={folder} makes one.")


def quality_line(quality: dict) -> str:
    """FID and reconstruction error in words."""
    text = (
        f"Reconstructions on 0 … 1: mean squared error {quality['reconstruction_mse']:.5f}, PSNR "
        f"{quality['reconstruction_psnr']:.2f} dB."
    )
    if "fid" in quality:
        text += (
            f" FID {quality['fid']:.2f} between {quality['fid_samples']:,} samples and as many "
            f"images (Inception weights {quality['fid_weights']})."
        )
    return text
