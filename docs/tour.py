# %% [markdown]
# # A tour of a trained model
#
# From a model that comes with the project to its reconstructions, its latents, what each layer
# carries, a collapse report, an interpolation and a score of foreign images. No network, no
# training, about a minute on a laptop. Each `# %%` begins a cell, which VS Code, PyCharm, Spyder,
# and Jupyter with jupytext, run one by one. In the checkout `python docs/tour.py` prints the same
# figures; either way the pictures and the report are saved in `runs/tour`.

# %%
# ruff: noqa: E402  the checkout has to be found before the project is imported
import json
import os
import subprocess
import sys
from pathlib import Path

folders = (Path.cwd(), *Path.cwd().parents)  # an editor may start in docs/
os.chdir(next(folder for folder in folders if (folder / "run_experiment.py").exists()))
sys.path.insert(0, os.getcwd())

import matplotlib.pyplot as plt
import torch

from datasets import digits
from datasets.loaders import EvaluationBatches, normalise
from utils.checkpoint import load_model
from utils.evaluation.bound import posterior_collapse
from utils.evaluation.collapse import posterior_samples_for
from utils.evaluation.ood import detect, score_both

OUTPUT = Path("runs/tour")
OUTPUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

# %% [markdown]
# ## A model, and images that it has not seen
#
# `load_model` takes a name in `pretrained/`, a run's folder, a file, or a run at W&B. Images are
# 8×8 digits with 17 grey levels; a model wants them in [−1, 1].

# %%
model, config = load_model("pretrained/digits_dct_ladder")
test = digits.load().test  # (297, 1, 8, 8) uint8
x = normalise(test[:10], max_value=16)
print(f"{config.name}: {model.num_latents} layers of latents; images {tuple(test.shape)}")


def show(name, **rows):
    """Draw rows of images (N, 1, H, W) in [−1, 1] and save them in the output folder."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.3 + len(rows)), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(torch.cat(list(images[:, 0]), dim=1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(label.replace("_", " "), loc="left", fontsize=9)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(OUTPUT / f"{name}.png")


# %% [markdown]
# ## Reconstructions and samples
#
# The context, the top latent, is computed from the image: its quantised low frequencies. With the
# context alone and everything else from the prior, the digit is recognisable in outline; with all
# latents it is sharp. Samples have all latents from the prior.

# %%
show(
    "reconstructions",
    images=x,
    from_all_latents=model.reconstruct(x, keep=model.num_latents),
    from_the_context_alone=model.reconstruct(x, keep=1),
    samples=model.sample(10),
)

# %% [markdown]
# ## Latents, layer by layer
#
# Layer 0 is the top. Each has the posterior's mean and deviation, a sample, and its KL in nats for
# every image. The whole sequence decodes to an image again.

# %%
for number, layer in enumerate(model.latents(x)):
    shape = "×".join(map(str, layer.mean.shape[1:]))
    print(f"layer {number}: {shape}, KL of the first image {layer.kl[0]:.3f} nats")

# %% [markdown]
# ## What each layer carries: KL and active units
#
# Over all test images. A layer of KL 0 has a posterior that equals its prior: it has collapsed. A
# unit is active where its posterior mean differs from image to image (a variance over 0.01). The
# plain ladder is the same model without a context.


# %%
def collapse(name):
    """The means over the test images: KL and active units per layer."""
    vae, _ = load_model(f"pretrained/{name}")
    batches = EvaluationBatches(test, max_value=16, batch_size=len(test))
    samples = posterior_samples_for(len(test))
    return posterior_collapse(vae, batches, 0, samples, lambda images: None).report()


reports = {name: collapse(name) for name in ("digits_dct_ladder", "digits_ladder")}
for name, found in reports.items():
    print(f"{name}: −ELBO {found.nelbo:.2f} nats, {found.active_units:.0%} of all units active")
    for number, kl in enumerate(found.kl):
        active = f"{found.active[number]:2} of {found.elements[number]:2} units active"
        print(f"  layer {number}: KL {kl:6.3f} nats, {active}")

# %% [markdown]
# ## A collapse report
#
# One command writes a page with all that is known of a model's layers: open
# `runs/tour/report/report.html`. Its figures are in a JSON file beside it. (Without
# `task.estimators=[]` it estimates the likelihood too, which takes half a minute.)

# %%
command = f"task=report checkpoint=pretrained/digits_dct_ladder task.output={OUTPUT}"
command += " task.estimators=[]"
subprocess.run(
    [sys.executable, "run_experiment.py", *command.split()], check=True, capture_output=True
)
for layer in json.loads((OUTPUT / "report" / "report.json").read_text())["layers"]:
    print(layer["verdict"])

# %% [markdown]
# ## From one image to another
#
# Straight between the posterior means of all layers, and of the context alone, where everything
# else stays the first image's.

# %%
show(
    "interpolation",
    all_latents=model.interpolate(x[0:1], x[7:8])[:, 0],
    context_only=model.interpolate(x[0:1], x[7:8], layers=[0])[:, 0],
)

# %% [markdown]
# ## Foreign images
#
# Digits that lie on their side: can the model tell them from upright ones? An AUROC of 0.5 is
# chance. `PNG bits` knows no model, only how well an image compresses. `LLR>k` is what the k lowest
# layers add to the bound: the higher, the less the layers above explain of the image.

# %%
foreign = torch.rot90(test, 1, (2, 3))
both = [EvaluationBatches(images, 16, len(images)) for images in (test, foreign)]
for score in score_both(model, both, seed=0, samples=1, tick=lambda images: None):
    if score.prior != "mode":
        auroc = detect(score, seed=0).auroc
        print(f"{score.name:>8}: AUROC {auroc.value:.2f}, 95 % {auroc.low:.2f} to {auroc.high:.2f}")
