"""The words that pages and tables use; docs/glossary.md has the same text."""

from utils.evaluation.collapse import ACTIVE_THRESHOLD, EPSILON
from utils.report.content import LITTLE_KL, MOSTLY_COLLAPSED, NEGLIGIBLE_NATS

GLOSSARY = {
    "latent": "A random variable that the model infers from an image and generates an image from: "
    "here an array of channels × height × width numbers.",
    "layer": "One latent of the hierarchy. Layers are counted from the top, from 0; each has a "
    "prior and a posterior that depend on the layers above it. (In names of settings the top "
    "one is z_L, as in the paper.)",
    "unit": "One number of a latent's array.",
    "context": "A top latent that a fixed rule computes from the image, such as its lowest cosine "
    "(DCT) coefficients, with a prior that a diffusion model learns. Plain ladders have none.",
    "ladder": "A hierarchy whose posteriors are inferred from the top down, each from the image's "
    "features and the layers above.",
    "temperature": "A factor on the variances of the priors when sampling: 1 samples "
    "from the model, less gives more typical and less varied images.",
    "active": "A unit is active if its posterior mean differs between images: if the mean's "
    f"variance over images is over {ACTIVE_THRESHOLD:g}. A layer is active if at least "
    f"{100 * MOSTLY_COLLAPSED:g} % of its units are, and it has at least {100 * LITTLE_KL:g} % of "
    "the KL. With fewer active units it has mostly collapsed, with less KL it carries little.",
    "collapsed": "A layer has collapsed if its posterior hardly differs from its prior: no unit is "
    f"active, and its KL is under {NEGLIGIBLE_NATS:g} nats or, if that is more, {EPSILON:g} nats "
    "per unit. It then says nothing about the image. A unit has collapsed if its KL is under ε for "
    "nearly every image.",
    "in use": "A layer is in use if the bound is worse, beyond the error over images, when the "
    "layer is drawn from its prior. A collapsed layer can be in use too: both bounds use the same "
    "noise, so that even thousandths of a nat show.",
    "ESS": "Effective sample size: how many of the K importance weights behind an estimate of "
    "−log p(x) really count. Near 1, a single weight decides, and a larger K would lower the "
    "estimate.",
    "nats and bits/dim": "Two units of the same quantity. A nat is 1/ln 2 = 1.44 bits; bits/dim "
    "are the bits of an image divided by the number of its values (pixels × channels).",
    "the sign of nll": "nll is −log p(x), in nats per image unless said otherwise: smaller is "
    "better, and it can be negative where p(x) is a density. −ELBO is an upper bound on it.",
}
