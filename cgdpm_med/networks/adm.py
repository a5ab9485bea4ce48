"""Reads ADM ("guided-diffusion") super-resolution checkpoints into a ConditionalUNet, and writes them.

ADM (Dhariwal & Nichol, 2021) concatenates x_t and the bilinearly up-sampled low resolution in front of its first
convolution. That is ``fusion="input"``: the weight splits into ``stem`` and ``cond_stem``. Everything else is the same
network under other names. Sampling as ADM does needs ``NoiseSchedule()`` and
``trajectory(…, method="ddpm", steps=250, clip=(-1, 1))``: linear betas, T = 1000, learned variance, and the same
evenly spaced timesteps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .blocks import ConditionJoin, zeroed
from .unet import ConditionalUNet

STEM = "input_blocks.0.0"
RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "emb",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "proj"}
REMEDY = "Give the state dictionary of an ADM upsampler, such as 64_256_upsampler.pt or 128_512_upsampler.pt"


@dataclass(frozen=True)
class AdmTopology:
    """What the tensors of an ADM upsampler tell about the network; levels run from fine to coarse."""

    image_channels: int
    channels: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[bool, ...]
    num_classes: int | None
    learn_sigma: bool


# the head split leaves no trace in the tensors; these two are known from ADM's own command lines
_WIDTHS = (192, 192, 384, 384, 768, 768)
PUBLISHED_HEADS: dict[AdmTopology, dict[str, int]] = {
    AdmTopology(3, _WIDTHS, 2, (False, False, False, True, True, True), 1000, True): {"num_heads": 4},  # 64 -> 256
    AdmTopology(3, _WIDTHS, 2, (False, False, False, False, True, True), 1000, True): {"num_head_channels": 64},
}


def load_adm_upsampler(
    path: str | os.PathLike[str],
    *,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    cond_scale: int = 4,
    fusion: str = "input",
) -> ConditionalUNet:
    """The network of an ADM super-resolution checkpoint, in evaluation mode, float32, on the CPU.

    ``net(x_t, t, low_res, class_labels)`` with x_t (B, 3, H, W), t (B,), low_res (B, 3, H / scale, W / scale) in
    [-1, 1] and class_labels int64 (B,) gives (B, 6, H, W): eps, then the variance interpolation v.

    Args:
        path: a file of tensors by ADM's names, as ``torch.save`` writes them.
        num_heads, num_head_channels: the head split of the attention, one of the two. It is known for the two
            published files, ``64_256_upsampler.pt`` and ``128_512_upsampler.pt``, and cannot be read off others.
        cond_scale: size of x_t / size of the low resolution; 4 in both published files.
        fusion: "input" is ADM itself. "encoder" adds the condition branches of CG-DPM, which start at zero: before
            training, the output is the pretrained network's.

    Raises:
        OSError: for a file that cannot be opened.
        ValueError: for a file of anything else, naming the tensors that do not fit, or an unknown head split.
    """
    tensors = read_tensors(path)
    try:
        return adm_upsampler(
            tensors, num_heads=num_heads, num_head_channels=num_head_channels, cond_scale=cond_scale, fusion=fusion
        )
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name; nothing else in it is ever executed.

    Raises:
        OSError, ValueError: for a file that cannot be opened, or does not hold tensors by name.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch, pickle and struct each have their own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{os.fspath(path)}: not a checkpoint of tensors ({reason}). {REMEDY}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{os.fspath(path)}: holds a {type(content).__name__}, not tensors by name. {REMEDY}")
    if strange := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{os.fspath(path)}: {_some(strange)} hold no tensor. {REMEDY}")
    return content


def adm_upsampler(
    tensors: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    cond_scale: int = 4,
    fusion: str = "input",
) -> ConditionalUNet:
    """:func:`load_adm_upsampler` for tensors in memory, by ADM's names.

    Raises:
        ValueError: for tensors that are not an ADM upsampler's, naming them, or an unknown head split.
    """
    if fusion not in ("input", "encoder"):
        raise ValueError(f"ADM weights need fusion 'input' or 'encoder', whose input has the condition, not {fusion!r}")
    topology = read_topology(tensors)
    arguments: dict[str, Any] = {"cond_scale": cond_scale, **_head_split(topology, num_heads, num_head_channels)}
    with torch.device("meta"):  # a wrong file is found out before any memory is taken
        expected = adm_network(topology, **arguments).state_dict()
    renamed = _renamed(tensors, topology, expected)
    network = adm_network(topology, fusion=fusion, **arguments)
    # the branches of fusion="encoder" are the only parameters that ADM does not have
    network.load_state_dict(renamed, strict=fusion == "input")
    for module in network.modules():
        if isinstance(module, ConditionJoin):
            zeroed(module.conv)
            zeroed(module.skip)
    return network.eval()


def adm_network(topology: AdmTopology, *, fusion: str = "input", **arguments: Any) -> ConditionalUNet:
    """An untrained network of ADM's architecture.

    Args:
        fusion: see :func:`load_adm_upsampler`.
        arguments: ``cond_scale``, and the head split of the attention.
    """
    return ConditionalUNet(
        in_channels=topology.image_channels,
        cond_channels=topology.image_channels,
        out_channels=topology.image_channels,
        channels=topology.channels,
        num_res_blocks=topology.num_res_blocks,
        attention_levels=topology.attention_levels,
        fusion=fusion,
        num_classes=topology.num_classes,
        learn_sigma=topology.learn_sigma,
        cond_interpolation="bilinear",
        mid_attention=True,
        resblock_updown=True,
        **arguments,
    )


def adm_tensors(network: ConditionalUNet, topology: AdmTopology) -> dict[str, Tensor]:
    """The tensors of :func:`adm_network` by ADM's names: what :func:`adm_upsampler` reads, and what ADM writes.

    Args:
        network: with fusion "input", of this topology.
    """
    theirs = {ours: adm for adm, ours in _module_names(topology)}
    tensors = network.state_dict()
    # ADM convolves the concatenation (x_t, y): one weight, one bias
    for leaf, joined in (("weight", partial(torch.cat, dim=1)), ("bias", sum)):
        tensors[f"stem.{leaf}"] = joined([tensors[f"stem.{leaf}"], tensors.pop(f"cond_stem.{leaf}")])
    parts = ((*name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {f"{theirs[module]}.{leaf}": tensor for module, _, leaf, tensor in parts}


def _head_split(topology: AdmTopology, num_heads: int | None, num_head_channels: int | None) -> dict[str, int]:
    if num_heads is not None and num_head_channels is not None:
        raise ValueError("give num_heads or num_head_channels, not both")
    if num_heads is not None:
        return {"num_heads": num_heads}
    if num_head_channels is not None:
        return {"num_head_channels": num_head_channels}
    if topology not in PUBLISHED_HEADS:
        raise ValueError(
            "the attention heads cannot be read off the tensors of this file, which is neither of the two published "
            "upsamplers: give num_heads or num_head_channels as it was trained with"
        )
    return PUBLISHED_HEADS[topology]


# --- reading the topology off the tensors -----------------------------------------------------------------------------


def read_topology(tensors: Mapping[str, Tensor]) -> AdmTopology:
    """Widths, blocks, attention places and classes of an ADM upsampler.

    Raises:
        ValueError: for tensors of another network, saying by which name or shape.
    """
    anchors = (f"{STEM}.weight", "time_embed.0.weight", "out.2.weight", "output_blocks.0.0.in_layers.2.weight")
    if missing := [name for name in anchors if name not in tensors]:
        raise ValueError(f"not an ADM U-Net: it lacks {_some(missing)} and holds {_some(tensors)}. {REMEDY}")
    if conv := [name for name in tensors if name.endswith((".op.weight", ".conv.weight"))]:
        raise ValueError(f"{conv[0]} belongs to an ADM U-Net trained with resblock_updown=False. {REMEDY}")
    stem, head = tensors[f"{STEM}.weight"], tensors["out.2.weight"]
    image_channels, odd = divmod(stem.shape[1], 2)
    if odd:
        raise ValueError(
            f"{STEM}.weight takes {stem.shape[1]} channels: this ADM network generates images without a low resolution,"
            f" an upsampler takes twice the channels of an image. {REMEDY}"
        )
    if head.shape[0] not in (image_channels, 2 * image_channels):
        raise ValueError(f"out.2.weight gives {head.shape[0]} channels for images of {image_channels}. {REMEDY}")
    blocks = _num_res_blocks(tensors)
    firsts = range(1, _count(tensors, "input_blocks"), blocks + 1)
    widths = [tensors.get(f"input_blocks.{first}.0.out_layers.3.weight") for first in firsts]
    if any(width is None for width in widths):
        raise ValueError(f"its encoder blocks are not residual blocks throughout. {REMEDY}")
    if (embedded := tensors["time_embed.0.weight"].shape[1]) != stem.shape[0]:
        raise ValueError(
            f"time_embed.0.weight embeds t in {embedded} channels, and the first level has {stem.shape[0]}: "
            "networks whose first channel multiplier is not 1 are not supported"
        )
    label = tensors.get("label_emb.weight")
    return AdmTopology(
        image_channels=image_channels,
        channels=tuple(int(width.shape[0]) for width in widths if width is not None),
        num_res_blocks=blocks,
        attention_levels=tuple(f"input_blocks.{first}.1.qkv.weight" in tensors for first in firsts),
        num_classes=None if label is None else int(label.shape[0]),
        learn_sigma=head.shape[0] == 2 * image_channels,
    )


def _num_res_blocks(tensors: Mapping[str, Tensor]) -> int:
    """A decoder level has one block more than an encoder level, and its last one up-samples too."""
    total = _count(tensors, "output_blocks")
    first_up = next((i for i in range(total) if _up_samples(tensors, i)), total - 1)
    if first_up < 1 or total % (first_up + 1) or _count(tensors, "input_blocks") != total:
        raise ValueError(f"its {total} decoder blocks do not mirror its encoder blocks. {REMEDY}")
    return first_up


def _up_samples(tensors: Mapping[str, Tensor], index: int) -> bool:
    """Whether a second residual block stands in an output block, after attention or without."""
    return any(f"output_blocks.{index}.{place}.in_layers.0.weight" in tensors for place in (1, 2))


def _count(tensors: Mapping[str, Tensor], stack: str) -> int:
    indices = [name.split(".")[1] for name in tensors if name.startswith(f"{stack}.")]
    return 1 + max(int(index) for index in indices if index.isdecimal())


# --- ADM's names and ours ---------------------------------------------------------------------------------------------


def _renamed(tensors: Mapping[str, Tensor], topology: AdmTopology, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names, the first convolution split in two; every one used, every one needed found."""
    theirs = {ours: adm for adm, ours in _module_names(topology)}
    sources = {name: f"{theirs[module]}.{leaf}" for name in expected for module, _, leaf in [name.rpartition(".")]}
    shapes = {adm: expected[name].shape for name, adm in sources.items()}
    stem, cond_stem = (expected[f"{name}.weight"].shape for name in ("stem", "cond_stem"))
    shapes[f"{STEM}.weight"] = torch.Size([stem[0], stem[1] + cond_stem[1], *stem[2:]])
    _compare(tensors, shapes)
    renamed = {name: tensors[adm].float() for name, adm in sources.items()}
    # a convolution of the concatenation (x_t, y) is the sum of two; the bias goes with x_t
    weight = renamed["stem.weight"]
    renamed["stem.weight"], renamed["cond_stem.weight"] = weight.split([stem[1], cond_stem[1]], dim=1)
    renamed["cond_stem.bias"] = torch.zeros_like(renamed["stem.bias"])
    return renamed


def _module_names(topology: AdmTopology) -> Iterator[tuple[str, str]]:
    """Pairs (ADM's name, ours) of the layers."""
    for name in ("time_embed.0", "time_embed.2"):
        yield name, name
    yield "label_emb", "class_embed"
    yield STEM, "stem"
    yield STEM, "cond_stem"
    yield "out.0", "norm_out"
    yield "out.2", "head"
    yield from _inside("middle_block.0", "mid1", RES_BLOCK)
    yield from _inside("middle_block.1", "mid_attention", ATTENTION)
    yield from _inside("middle_block.2", "mid2", RES_BLOCK)
    levels, blocks = len(topology.channels), topology.num_res_blocks
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        for block in range(blocks):
            yield from _inside(f"input_blocks.{first + block}.0", f"encoder.levels.{level}.{block}", RES_BLOCK)
            yield from _inside(f"input_blocks.{first + block}.1", f"encoder.attentions.{level}.{block}", ATTENTION)
        yield from _inside(f"input_blocks.{first + blocks}.0", f"encoder.downs.{level}", RES_BLOCK)
    for level in range(levels):  # coarse to fine, as the decoder runs
        first = level * (blocks + 1)
        for block in range(blocks + 1):
            yield from _inside(f"output_blocks.{first + block}.0", f"decoder.levels.{level}.{block}", RES_BLOCK)
            yield from _inside(f"output_blocks.{first + block}.1", f"decoder.attentions.{level}.{block}", ATTENTION)
        if level < levels - 1:
            # behind the block, and behind the attention where there is one
            place = 1 + topology.attention_levels[levels - 1 - level]
            yield from _inside(f"output_blocks.{first + blocks}.{place}", f"decoder.ups.{level}", RES_BLOCK)


def _inside(adm: str, ours: str, layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for their_layer, our_layer in layers.items():
        yield f"{adm}.{their_layer}", f"{ours}.{our_layer}"


def _compare(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise a ValueError that lists missing and unexpected tensors and those of another shape."""
    faults = []
    if missing := [name for name in shapes if name not in tensors]:
        faults.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected := [name for name in tensors if name not in shapes]:
        faults.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    different = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if different:
        faults.append(f"{len(different)} of another shape ({_some(different)})")
    if faults:
        raise ValueError(f"these tensors are not an ADM upsampler's: {', '.join(faults)}. {REMEDY}")


def _some(names: Iterable[object], most: int = 4) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (f", … {len(texts) - most} more" if len(texts) > most else "")
