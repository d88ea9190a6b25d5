"""Checkpoints published for arXiv 2302.09976: their parameter names mapped to this project's.

Such a file holds weights but no settings, which follow from the experiment's name. Blocks are
numbered from the top, the context being block 0; in a plain ladder block 0 is the top latent.
"""

import re
from collections.abc import Iterator

from torch import Tensor, nn

from model.decoder import ContextDecoder
from model.layers import ResidualBlock
from model.priors import NetworkPrior
from model.unet import SelfAttention, TimeBlock
from utils.runs.tensors import named_tensors
from utils.terminal import printable

UNUSED = re.compile(
    r"decoder\.s_L$"  # the constant zero initial state
    r"|decoder\.y_block\."
    r"|decoder\.decoder_blocks\.0\.(dct_mean|dct_std|dct\.)"
    r"|decoder\.decoder_blocks\.\d+\.(s_to_p|s_to_q)\.(beta|skip\.)"  # blocks without residual
    r"|decoder\.z_L_prior\.|decoder\.decoder_blocks\.0\.top_prior\."  # where another prior is used
)
TIME_BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "modulate": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
WEIGHT_NORM = {"original0": "weight_g", "original1": "weight_v"}


def is_published(checkpoint: object) -> bool:
    """Whether a loaded file has the published layout."""
    return isinstance(checkpoint, dict) and "model_state_dict" in checkpoint


def convert(checkpoint: dict, model: nn.Module, source: str) -> dict[str, Tensor]:
    """The state dict for `model` (of the averaged weights, where the file has them).

    source: the file, for messages.

    Raises:
        ValueError: if the file holds another architecture than the model's.
    """
    averaged = checkpoint.get("ema_model_state_dict")
    key = "model_state_dict" if averaged is None or averaged == {} else "ema_model_state_dict"
    weights = named_tensors(checkpoint, key, source)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    weights.pop("n_averaged", None)
    names = {ours: _tensor_name(ours, theirs) for ours, theirs in _tensors(model)}
    converted, used = {}, set()
    for ours, expected in model.state_dict().items():
        theirs = next((name for name in names[ours] if name in weights), names[ours][0])
        if theirs not in weights:
            raise ValueError(_mismatch(f"lacks {theirs}"))
        value = weights[theirs]
        if value.numel() != expected.numel():
            shape, wanted = tuple(value.shape), tuple(expected.shape)
            raise ValueError(_mismatch(f"has {theirs} of shape {shape} instead of {wanted}"))
        converted[ours] = value.reshape(expected.shape)
        used.add(theirs)
    unknown = [name for name in weights if name not in used and not UNUSED.match(name)]
    if unknown:
        raise ValueError(
            _mismatch(f"has {printable(unknown[0]):.100}, which the model has no place for")
        )
    return converted


def _mismatch(what: str) -> str:
    return (
        f"The published checkpoint {what}: name the experiment it was trained by and its settings, "
        'as in overrides=["experiment=mnist_dct_ladder"].'
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Every entry of the model's state dict with the published names of its module."""
    modules = dict(_modules(model))
    for name in model.state_dict():
        module, _, tensor = name.partition(".parametrizations.weight.")
        if not tensor:
            module, _, tensor = name.rpartition(".")
        if module not in modules and name not in modules:
            raise ValueError(f"The published format has no place for {name}, which this model has.")
        yield name, modules.get(module) or modules[name]


def _tensor_name(ours: str, modules: list[str]) -> list[str]:
    """Published tensor names; where the module's entry is a tensor already, it is kept."""
    tensor = ours.rpartition(".")[2]
    if tensor in ("scale", "mean", "logvar"):
        return modules
    return [f"{module}.{WEIGHT_NORM.get(tensor, tensor)}" for module in modules]


def _modules(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """(module of this project, its published names), most likely name first."""
    encoder, decoder = model.encoder, model.decoder
    yield "encoder.stem", ["encoder.pre_process.0"]
    for i, block in enumerate(encoder.init_blocks):
        yield from _block(f"encoder.init_blocks.{i}", block, f"encoder.pre_process.{i + 1}", 1)
    for i, net in enumerate(encoder.nets):
        for j, block in enumerate(net):
            yield from _block(f"encoder.nets.{i}.{j}", block, f"encoder.encoder_blocks.{i}.{j}", 1)
    first = int(isinstance(decoder, ContextDecoder))
    if first:
        top = "decoder.decoder_blocks.0"
        yield "decoder.context.scale", [f"{top}.dct_scale"]
        yield "decoder.context_conv", [f"{top}.posprocess_block.1"]
        yield from _unet(
            "decoder.context_prior.net", decoder.context_prior.net, [f"{top}.ctx_prior"]
        )
    for i, block in enumerate(decoder.blocks):
        ours, theirs = f"decoder.blocks.{i}", f"decoder.decoder_blocks.{i + first}"
        yield f"{ours}.z_conv", [f"{theirs}.z_up"]
        for j, inner in enumerate(block.blocks):
            yield from _block(f"{ours}.blocks.{j}", inner, f"{theirs}.resnet.{j}", 0)
        yield from _convs(f"{ours}.posterior_net", block.posterior_net, f"{theirs}.s_to_q", 0)
        yield from _prior(f"{ours}.prior", block.prior, theirs)
    for k in range(len(decoder.condition)):
        yield f"decoder.condition.{k}", [f"decoder.z_L_up.{k}.1"]
    for i, layer in enumerate(decoder.head):
        ours, theirs = f"decoder.head.{i}", f"decoder.post_process.{i}"
        if isinstance(layer, ResidualBlock):
            yield from _block(ours, layer, theirs, 0)
        else:
            yield ours, [theirs]


def _block(ours: str, block: ResidualBlock, theirs: str, conv: int) -> Iterator:
    """A residual block: its scalar, its skip, its convolutions."""
    yield ours, [theirs]  # beta
    yield f"{ours}.skip", [f"{theirs}.skip"]
    yield from _convs(f"{ours}.net", block.net, theirs, conv)


def _convs(ours: str, net: nn.Sequential, theirs: str, conv: int) -> Iterator:
    """A net's convolutions; conv is their index beside the activation they come with.

    A post-activation net's last convolution (conv = 0) has no activation and stands alone.
    """
    if any(isinstance(layer, nn.BatchNorm2d) for layer in net):
        raise ValueError(
            "model.batch_norm=true has no published checkpoints to read: set it to false."
        )
    indices = [i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
    for k, index in enumerate(indices):
        alone = conv == 0 and k == len(indices) - 1
        yield f"{ours}.{index}", [f"{theirs}.net.{k}" + ("" if alone else f".net.{conv}")]


def _prior(ours: str, prior: nn.Module, theirs: str) -> Iterator:
    """The prior of a latent: a net, or the plain ladder's learned top prior."""
    if isinstance(prior, NetworkPrior):
        yield from _convs(f"{ours}.net", prior.net, f"{theirs}.s_to_p", 0)
        return
    tops = [f"{theirs}.top_prior", "decoder.z_L_prior"]
    yield f"{ours}.mean", [f"{top}.mu" for top in tops]
    yield f"{ours}.logvar", [f"{top}.log_var" for top in tops]
    if hasattr(prior, "net"):
        yield from _unet(f"{ours}.net", prior.net, tops)


def _unet(ours: str, unet: nn.Module, priors: list[str]) -> Iterator:
    """The denoiser; a downsampling is an input block, an upsampling the end of an output block."""
    for i in (0, 2):
        yield f"{ours}.time_embed.{i}", [f"{prior}.model.time_embed.{i}" for prior in priors]
        yield f"{ours}.out.{i}", [f"{prior}.model.out.{i}" for prior in priors]
    pairs = [("stem", unet.stem, "input_blocks.0.0")]
    for i, layer in enumerate(unet.down):
        tail = "0" if isinstance(layer, TimeBlock) else "0.op"
        pairs.append((f"down.{i}", layer, f"input_blocks.{i + 1}.{tail}"))
    for i, layer in enumerate(unet.middle):
        pairs.append((f"middle.{i}", layer, f"middle_block.{i}"))
    output = -1
    for i, layer in enumerate(unet.up):
        output += isinstance(layer, TimeBlock)
        tail = "0" if isinstance(layer, TimeBlock) else "1.conv"
        pairs.append((f"up.{i}", layer, f"output_blocks.{output}.{tail}"))
    for name, layer, theirs in pairs:
        parts = {"": ""}
        if isinstance(layer, TimeBlock):
            parts = {f".{part}": f".{other}" for part, other in TIME_BLOCK.items()}
        elif isinstance(layer, SelfAttention):
            parts = {".norm": ".norm", ".qkv": ".qkv", ".out": ".proj_out"}
        for part, other in parts.items():
            names = [f"{prior}.model.{theirs}{other}" for prior in priors]
            yield f"{ours}.{name}{part}", names
