"""Every shipped experiment composes, builds and trains; every wrong value gets one sentence."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from model.noise import Noise
from tests.conftest import ROOT, TINY_UNET, compose, shrunk
from utils import errors
from utils.errors import ConfigError
from utils.settings import build, composition, identity, images
from utils.settings.recorded import recorded_settings
from utils.settings.schema import KEYS
from utils.settings.trust import CONFIGS
from utils.settings.typed import check_words

EXPERIMENTS = composition.experiments()
OWN_PARTS = ("objective", "decoder.context")  # that a user may put in place of the project's
PARAMETERS = {  # of the published models, less those that they never use (model.md, section 9)
    "mnist_dct_ladder": 696_439 - 8_650,
    "mnist_ladder": 656_617 - 11_984,
}


def test_all_ten_are_there():
    sets = ("cifar", "digits", "mnist", "omniglot", "svhn")
    assert sorted(f"{s}{kind}_ladder" for s in sets for kind in ("", "_dct")) == EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_builds_at_full_size(experiment):
    settings = compose(experiment)
    with torch.device("meta"):
        model = build.build_model(settings)
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS.get(experiment, count)
    assert len(model.decoder.blocks) == sum(settings.model.latent_scales)
    assert settings.name == experiment and settings.train.seed == 123


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_takes_two_steps(experiment):
    settings = compose(experiment, *shrunk(experiment))
    torch.manual_seed(0)
    model, objective = build.build_model(settings), build.build_objective(settings)
    dataset = settings.dataset
    shape = (4, dataset.channels, dataset.image_size, dataset.image_size)
    images = torch.randint(0, dataset.levels, shape)
    model.fit_context(images.byte(), dataset.levels - 1)
    x = 2.0 * images / (dataset.levels - 1) - 1
    optimizer, _ = build.build_optimizer(settings, model)
    for step in range(2):
        optimizer.zero_grad()
        loss = objective(model(x, noise=Noise.keyed(torch.arange(4), step)), 1.0).loss
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert not [name for name, p in model.named_parameters() if p.grad is None]  # all are used


def test_published_settings_of_the_table():
    cifar = compose("cifar_dct_ladder")
    assert cifar.model.latent_scales == [10, 5, 5, 2, 0, 1]
    assert cifar.model.decoder.z_L_prior.model.channel_mult == [1, 1]
    assert cifar.train.scheduler.T_max == cifar.train.max_epochs == 8000
    assert cifar.train.optimizer.lr == 4e-4 and cifar.train.use_amp
    assert not compose("omniglot_dct_ladder").model.decoder.condition_on_last
    assert compose("svhn_ladder").dataset.data_module.test_batch_size == 128


def test_every_rule_belongs_to_a_shipped_key_and_every_key_has_one():
    keys = set()
    for path in CONFIGS.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        content.pop("defaults", None)
        content.pop("hydra", None)
        folder = path.relative_to(CONFIGS).parent.parts
        inside = folder if path.stem != "defaults" or folder else ()
        of_all = not inside or inside[0] in ("experiment", "remedy")
        prefix = "" if of_all else ".".join(inside) + "."
        keys |= {prefix + key for key, _ in identity.leaves(content)}
    assert keys - {"train.scheduler"} <= set(KEYS)
    own = {f"model.{part}.{key}" for part in OWN_PARTS for key in ("_target_", "_partial_")}
    assert set(KEYS) - keys == own


def test_every_key_is_read_somewhere():
    """A key that no code names is decoration; those below a target are read by its signature."""
    code = "\n".join(
        path.read_text()
        for folder in ("datasets", "model", "utils")
        for path in (ROOT / folder).rglob("*.py")
        if "schema" not in path.parts
    )
    code += (ROOT / "run_experiment.py").read_text()
    passed_on = ("train.optimizer.", "train.scheduler.")
    for key in KEYS:
        name = key.rpartition(".")[2]
        if not key.startswith(passed_on) and not name.startswith("_"):
            assert re.search(rf"\b{name}\b", code), key


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.optimizer.lr=abc", "train.optimizer.lr='abc' .*use a number"),
        ("train.optimizer.lr=-1", "train.optimizer.lr=-1 .*use a number"),
        ("train.optimizer.lr=nan", "train.optimizer.lr=nan .*use a number"),
        ("train.max_epochs=1.5", "train.max_epochs=1.5 .*whole number of 1 or more"),
        ("train.max_epochs=true", "train.max_epochs=True .*whole number"),
        ("train.seed=-1", "train.seed=-1"),
        ("train.foo=3", "train.foo is not a setting: did you mean"),
        ("+train.foo=3", "train.foo is not a setting: did you mean"),
        ("task.num_images=3", "task.num_images is not a setting here: the task chosen"),
        ("train.use_amp=yes please", "train.use_amp='yes please' .*one of true, false"),
        ("train.device=gpu", "train.device='gpu' .*auto, cpu, cuda"),
        ("model.likelihood=poisson", "model.likelihood='poisson' .*one of bernoulli"),
        ("model.latent_scales=[4,3,1]", "latent_scales=.* has 3 .*latent_width=.* has 2"),
        ("model.latent_scales=[4,0]", "no latents at its coarsest scale"),
        ("model.latent_scales=4", "model.latent_scales=4 .*a list"),
        ("model.latent_width=[1,0]", "latent_width=.* has a 0"),
        ("model.latent_width=[1,1.5]", "latent_width=.*whole number"),
        ("dataset.image_size=30", "halves the image 2 times, which 30 pixels"),
        ("model.ctx_size=29", "model.ctx_size=29 is over the image's 28 pixels"),
        ("model.ctx_size=0", "model.ctx_size=0"),
        ("model.block_ch_mult=0.01", "block_ch_mult=0.01 leaves a block no channels"),
        ("model.decoder.z_L_prior.T=1", "z_L_prior.T=1 .*2"),
        (f"{TINY_UNET}.model_channels=24", "model_channels=24 times 1 is no multiple of 16"),
        (f"{TINY_UNET}.num_heads=5", "num_heads=5 does not divide"),
        (f"{TINY_UNET}.channel_mult=[1,1]", "halves the top latent 1 times, which its 7 elements"),
        ("model/decoder=ladder", "needs model/decoder=context"),
        ("model/decoder/z_L_prior=standard", "must be a diffusion model"),
        ("model/decoder/z_L_prior=nope", "nope is not a choice: use one of ddgm, gaussian"),
        (
            "train/optimizer=sgd",
            "sgd is not a choice: use one of adam, adamax, adamw",
        ),
        ("experiment=nope", "experiment=nope is not a choice: use one of cifar_dct_ladder"),
        ("model.latent_scales=[4,", "correct the command line"),
        ("wandb.setup.mode=on", "wandb.setup.mode=.*one of auto, online, offline, disabled"),
    ],
)
def test_wrong_values_get_one_sentence(override, complaint):
    with pytest.raises(errors.ConfigError, match=complaint) as caught:
        if override.startswith("experiment"):
            composition.composed_settings(composition.compose([override]))
        else:
            compose("mnist_dct_ladder", override)
    assert "\n" not in str(caught.value)


def test_without_an_experiment_the_remedy_is_named():
    with pytest.raises(errors.ConfigError, match=r"choose an experiment=…"):
        composition.composed_settings(composition.compose([]))


def test_wrong_targets_and_arguments_get_one_sentence():
    for override, complaint in (
        ("dataset._target_=nowhere.load", "dataset._target_=nowhere.load failed"),
        ("dataset._target_=datasets.digits.nope", "digits.nope failed"),
    ):
        with pytest.raises(errors.ConfigError, match=complaint):
            images.load_images(compose("digits_ladder", override))
    settings = compose("digits_ladder", "+train.optimizer.lrr=1", *shrunk("digits_ladder"))
    with pytest.raises(errors.ConfigError, match=r"AdamW failed .*lrr"):
        build.build_optimizer(settings, build.build_model(settings))


def test_an_estimator_of_ones_own_takes_no_name_of_the_projects():
    with pytest.raises(ConfigError, match=r"estimators.iwae has the name of one of the project's"):
        compose("digits_ladder", "+estimators.iwae._target_=tests.extending.parts.Best")


def test_images_must_be_what_the_settings_say():
    for override, complaint in (
        ("dataset.image_size=16", r"image_size=16 don't fit .*\(1, 8, 8\): use 1 and 8"),
        ("dataset.levels=256", "dataset.levels=256 doesn't fit .* use 17"),
    ):
        with pytest.raises(errors.ConfigError, match=complaint):
            images.load_images(compose("digits_ladder", override))


def test_the_digest_follows_what_determines_the_result():
    base = identity.run_name(compose("mnist_dct_ladder"))
    assert base == "mnist_dct_ladder-seed123-739398ef"  # what earlier versions called it
    same = ["train.device=cpu", "dataset.root=/elsewhere", "runs_dir=there", "train.ddp=false"]
    same += ["wandb.setup.mode=disabled", "wandb.api_key=secret", "train.eval_freq=5"]
    same += ["dataset.data_module.test_batch_size=7", "dataset.download=false"]
    same += ["model.is_k_paths=1", "model.is_k_per_context=1"]
    same += ["task.noise_seed=1"]
    assert identity.run_name(compose("mnist_dct_ladder", *same)) == base
    names = {base}
    for change in ("train.seed=1", "model.num_ch=16", "train.max_epochs=5", "model.is_k=2"):
        names.add(identity.run_name(compose("mnist_dct_ladder", change)))
    assert len(names) == 5


def test_secrets_are_not_written_down():
    settings = compose("digits_ladder", "wandb.api_key=planted-key")
    assert "planted-key" not in str(identity.without_secrets(settings))
    assert settings.wandb.api_key == "planted-key"


def test_a_text_that_looks_like_a_number_stays_one():
    texts = ["train.resume_id=12e45678", "runs_dir=2026", "+dataset.root=1_2", "wandb.notes=nan"]
    others = ["train.seed=3", "train.lr=1e-3", "train.resume_id=null", "checkpoint='7'", "my.key=1"]
    arguments = [*texts, *others]
    check_words(arguments)
    assert arguments[len(texts) :] == others
    parsed = OverridesParser.create().parse_overrides(arguments[: len(texts)])
    assert [override.value() for override in parsed] == ["12e45678", "2026", "1_2", "nan"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.optimizer=adam"], r"did you mean train/optimizer=adam\?"),
        (["model.encoder=small_ladder"], r"did you mean model/encoder=small_ladder\?"),
        (["model.decoder.z_L_prior=flow"], r"choose model/decoder/z_L_prior= one of ddgm, "),
        (["digits_dct_ladder"], r"did you mean experiment=digits_dct_ladder\?"),
        (["digits-dct-ladder", "train.seed=1"], r"did you mean experiment=digits_dct_ladder\?"),
        (["quick"], r"quick sets nothing: use key=value\."),
        (["+dataset.path=/d/ü"], r"use \"\+dataset.path='/d/ü'\"\."),
        (["train.seed=ü"], "train.seed='ü' is not valid"),
    ],
)
def test_words_that_set_nothing(words, told):
    with pytest.raises(ConfigError, match=told):
        check_words(words)


AWKWARD = ("/t/a (copy)", "~/x", '/a [1] {2}; <3> & "4" #5 !6 `7`')


@pytest.mark.parametrize(
    "path", ["/d/ü=3.pth", "/it's=1", "/a=\\'b\\", "/=", "/a = b, c", *AWKWARD]
)
def test_paths_need_no_quotes(path):
    words = [f"checkpoint={path}", f"runs_dir={path}"]
    check_words(words)
    parsed = OverridesParser.create().parse_overrides(words)
    assert [override.value() for override in parsed] == [path, path]


def test_words_that_are_fine_stay():
    words = ["-m", "--config-dir", "mine", "experiment=a,b", "train/optimizer=adam", "~train.x"]
    words += ["train.optimizer={lr: 1e-3}", "train.scheduler=null", "runs=[a,b]", "checkpoint=a,ü"]
    words += ["experiment=glob(*)", "train.seed=range(1,5)", "wandb.notes=str(1)"]
    before = list(words)
    check_words(words)
    assert words == before


def test_overrides_on_a_trained_models_settings():
    saved = compose("digits_dct_ladder").plain
    found = recorded_settings(saved, ["model.is_k=3", "task=test", "checkpoint=x"])
    assert found.model.is_k == 3
    assert found.plain == {**saved, "model": {**saved["model"], "is_k": 3}}
    earlier = {**saved, "train": {k: v for k, v in saved["train"].items() if k != "compute_fid"}}
    assert recorded_settings(earlier, []).plain == saved
    sampling = ("is_k_per_context", "is_k_paths")
    model = {key: value for key, value in saved["model"].items() if key not in sampling}
    earlier = {**saved, "model": {**model, "is_k_prior": 16}}
    assert recorded_settings(earlier, []).plain == saved
    assert identity.digest(earlier) == identity.digest(saved)
    earlier = {**saved, "task": {k: v for k, v in saved["task"].items() if k != "noise_seed"}}
    assert recorded_settings(earlier, []).task.noise_seed == 0
    of_mnist = compose("mnist_ladder").plain
    other = recorded_settings(of_mnist, ["dataset=omniglot", "dataset.root=/here"])
    assert other.dataset.name == "omniglot" and other.dataset.root == "/here"
    for override, complaint in (
        ("experiment=mnist_ladder", "contradicts the checkpoint"),
        ("model/encoder=small_ladder", "another model"),
        ("dataset=mnist", "images of 1×28×28, the checkpoint is of a model of 1×8×8"),
        ("dataset.image_size=16", "images of 1×16×16"),
    ):
        with pytest.raises(errors.ConfigError, match=complaint):
            recorded_settings(saved, [override])


def test_plain_containers_survive_yaml():
    settings = compose("cifar_dct_ladder").plain
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings
    assert OmegaConf.to_container(OmegaConf.create(settings)) == settings
    assert Path(CONFIGS).is_dir()
