"""ConditionalUNet: the diffusion U-Net of CG-DPM, with every conditioning strategy of the paper's ablation.

``fusion`` says where the condition image y enters (paper, section 4.2):

=====================  ======  ==========================================================================
``"input"``            SR3     up-sampled y concatenated to x_t at the first level only
``"bottleneck"``       B1      stacked down-sampling layers on y, joined at the bottleneck
``"dual_encoder"``     B2      a second encoder of the same shape for y, joined at the bottleneck
``"encoder_decoder"``  B3      features of y at every level of encoder and decoder
``"encoder"``          **B4**  input concatenation, and a branch of y at the very beginning of every encoder level
=====================  ======  ==========================================================================

y never meets t or x_t before it is joined: ``encode`` runs once per image and serves every timestep and
every ensemble member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    Attention,
    Concatenation,
    ConditionBranch,
    ConditionJoin,
    Join,
    ResBlock,
    add_per_image,
    conv,
    conv_transpose,
    group_norm,
    timestep_embedding,
    zeroed,
)
from .denoiser import Denoiser
from .levels import Axes, Levels, levels_of

FUSIONS = ("input", "bottleneck", "dual_encoder", "encoder_decoder", "encoder")


class ConditionFeatures(NamedTuple):
    """What ``encode`` returns: all the network needs of y, per image. Levels run from fine to coarse."""

    stem: Tensor | None
    encoder: tuple[Join | None, ...]
    bottleneck: Join | None
    decoder: tuple[Join | None, ...]

    def map(self, fn: Callable[[Tensor], Tensor]) -> ConditionFeatures:
        """Apply ``fn`` to every tensor, for example ``lambda f: f[2:5]`` to select images."""

        def each(join: Join | None) -> Join | None:
            return None if join is None else (fn(join[0]), fn(join[1]))

        return ConditionFeatures(
            None if self.stem is None else fn(self.stem),
            tuple(each(join) for join in self.encoder),
            each(self.bottleneck),
            tuple(each(join) for join in self.decoder),
        )


class ConditionPyramid(nn.Module):
    """One independent branch per level, each ending at that level's resolution, ready to join a residual block.

    Args:
        scales: for each level, log2 of (level size / size of y); positive means up-sampling.
        out_channels: channels of the residual block each level joins.
        width_at: channels of the features at each scale between 0 and ``scales``.
        kernels: of the levels that are joined.
        sizes: of the network's levels.
    """

    def __init__(
        self,
        spatial_dims: int,
        cond_channels: int,
        scales: Sequence[int],
        out_channels: Sequence[int],
        width_at: Callable[[int], int],
        kernels: Sequence[Axes],
        sizes: Levels,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.joins = nn.ModuleList()
        for scale, out, kernel in zip(scales, out_channels, kernels, strict=True):
            path = [width_at(step) for step in (range(0, scale - 1, -1) if scale < 0 else range(scale + 1))]
            layers = None if scale > 0 else sizes.way_down(-scale)
            direction = "up" if scale > 0 else "down"
            self.branches.append(ConditionBranch(spatial_dims, cond_channels, path, direction, layers))
            self.joins.append(ConditionJoin(spatial_dims, path[-1], out, kernel))

    def forward(self, y: Tensor) -> tuple[Join, ...]:
        """y: (B, Cc, *S) -> for each level, the pair a ConditionJoin gives at the level's size."""
        return tuple(join(branch(y)) for branch, join in zip(self.branches, self.joins, strict=True))


class Encoder(nn.Module):
    """Levels of residual blocks and attention, each but the last followed by down-sampling.

    Returns every block's output, finest first, beginning with the stem's.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention: Sequence[Callable[[int], nn.Module] | None],
        emb_channels: int | None,
        sizes: Levels,
        resblock_updown: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.downs = nn.ModuleList()
        current = channels[0]
        self.skip_channels = [current]
        for level, width in enumerate(channels):
            blocks, attns = nn.ModuleList(), nn.ModuleList()
            make_attention = attention[level]
            more: dict[str, Any] = {"dropout": dropout, "kernel_size": sizes.kernels[level]}
            for _ in range(num_res_blocks):
                blocks.append(ResBlock(spatial_dims, current, width, emb_channels, **more))
                attns.append(make_attention(width) if make_attention else nn.Identity())
                current = width
                self.skip_channels.append(current)
            self.levels.append(blocks)
            self.attentions.append(attns)
            if level < len(channels) - 1:
                step = sizes.strides[level]
                self.downs.append(
                    ResBlock(spatial_dims, width, width, emb_channels, resample="down", factor=step, **more)
                    if resblock_updown
                    else conv(spatial_dims, width, width, sizes.kernels[level], step)
                )
                self.skip_channels.append(current)

    def forward(self, h: Tensor, emb: Tensor | None = None, joins: Sequence[Join | None] = ()) -> list[Tensor]:
        """h: (B, channels[0], *S); emb: (B or 1, E); joins: one for each level, or none at all."""
        skips = [h]
        for level, (blocks, attns) in enumerate(zip(self.levels, self.attentions, strict=True)):
            joined = joins[level] if joins else None
            for block, attn in zip(blocks, attns, strict=True):  # type: ignore[call-overload]
                h = attn(block(h, emb, joined))
                joined = None
                skips.append(h)
            if level < len(self.downs):
                down = self.downs[level]
                h = down(h, emb) if isinstance(down, ResBlock) else down(h)
                skips.append(h)
        return skips


class Decoder(nn.Module):
    """Mirror of the encoder: each residual block consumes one skip; each level but the finest ends in up-sampling."""

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention: Sequence[Callable[[int], nn.Module] | None],
        emb_channels: int | None,
        skip_channels: Sequence[int],
        sizes: Levels,
        resblock_updown: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.concatenate = Concatenation()
        remaining = list(skip_channels)
        current = channels[-1]
        for level in reversed(range(len(channels))):
            width = channels[level]
            blocks, attns = nn.ModuleList(), nn.ModuleList()
            make_attention = attention[level]
            more: dict[str, Any] = {"dropout": dropout, "kernel_size": sizes.kernels[level]}
            for _ in range(num_res_blocks + 1):
                blocks.append(ResBlock(spatial_dims, current + remaining.pop(), width, emb_channels, **more))
                attns.append(make_attention(width) if make_attention else nn.Identity())
                current = width
            self.levels.append(blocks)
            self.attentions.append(attns)
            if level:
                step = sizes.strides[level - 1]
                self.ups.append(
                    ResBlock(spatial_dims, width, width, emb_channels, resample="up", factor=step, **more)
                    if resblock_updown
                    else conv_transpose(spatial_dims, width, channels[level - 1], step)
                )
                current = width if resblock_updown else channels[level - 1]

    def forward(self, h: Tensor, skips: list[Tensor], emb: Tensor, joins: Sequence[Join | None] = ()) -> Tensor:
        """h: the bottleneck's output; skips: the encoder's outputs, fine to coarse. -> (B, channels[0], *S)."""
        skips = list(skips)
        for index, (blocks, attns) in enumerate(zip(self.levels, self.attentions, strict=True)):
            joined = joins[len(self.levels) - 1 - index] if joins else None
            for block, attn in zip(blocks, attns, strict=True):  # type: ignore[call-overload]
                h = attn(block(self.concatenate(h, skips.pop()), emb, joined))
                joined = None
            if index < len(self.ups):
                up = self.ups[index]
                h = up(h, emb) if isinstance(up, ResBlock) else up(h)
        return h


class ConditionalUNet(Denoiser):
    """Diffusion U-Net conditioned on an image (paper, section 3.1 and figure 2b).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of x_t.
        cond_channels: channels of the condition image; 0 for an unconditional network.
        out_channels: channels of the prediction; doubled when ``learn_sigma``.
        channels: width of each level, fine to coarse.
        num_res_blocks: residual blocks per level.
        attention_levels: which levels have self-attention.
        fusion: one of :data:`FUSIONS`, see the module's table.
        num_classes: size of the class embedding, or None.
        learn_sigma: also predict ADM's variance interpolation v.
        cond_scale: size of x_t / size of y (a power of two), 8 for 16 -> 128 super-resolution.
        patch_size: x_t and y enter in patches of this size (a strided convolution), and the prediction leaves so:
            2 costs a quarter of the compute at the finest level. One number, or one for each axis.
        cond_interpolation: how y is brought to the size of x_t for the input concatenation, "bicubic" or "bilinear";
            3D networks always take "trilinear".
        mid_attention: self-attention at the bottleneck; None means as the coarsest level has it.
        num_head_channels, num_heads: the head split of the attention.
        resblock_updown: change resolution with residual blocks, as ADM does, instead of strided and transposed
            convolutions: dearer by about half.
        strides: of each level to the next, 1 or 2 along each axis; 2 everywhere by default.
        kernels: of each level's convolutions, 1 or 3 along each axis; 3 everywhere by default.

    Raises:
        ValueError: for an unknown fusion, lengths that disagree, or sizes that are not divisible as needed.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 4,
        cond_channels: int = 1,
        out_channels: int = 4,
        channels: Sequence[int] = (64, 128, 256),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True),
        fusion: str = "encoder",
        num_classes: int | None = None,
        learn_sigma: bool = False,
        *,
        cond_scale: int = 1,
        patch_size: int | Sequence[int] = 1,
        cond_interpolation: str = "bicubic",
        mid_attention: bool | None = None,
        num_head_channels: int = 64,
        num_heads: int | None = None,
        resblock_updown: bool = False,
        dropout: float = 0.0,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, not {fusion!r}")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, not {spatial_dims}")
        if len(attention_levels) != len(channels):
            raise ValueError(f"attention_levels has {len(attention_levels)} entries for {len(channels)} levels")
        if cond_scale < 1 or cond_scale & (cond_scale - 1):
            raise ValueError(f"cond_scale must be a power of two, not {cond_scale}")
        sizes = levels_of(spatial_dims, len(channels), patch_size, strides, kernels)
        if cond_scale > 1 and len(set(sizes.divisors)) > 1:
            raise ValueError("cond_scale is for networks whose axes are halved alike")
        self.spatial_dims = spatial_dims
        self.in_channels, self.out_channels, self.cond_channels = in_channels, out_channels, cond_channels
        self.fusion = fusion
        self.learn_sigma = learn_sigma
        self.num_classes = num_classes
        self.cond_scale, self.patch_size, self.cond_interpolation = cond_scale, patch_size, cond_interpolation
        self.model_channels = channels[0]
        self.divisors = tuple(max(side, cond_scale) for side in sizes.divisors)
        fusion = fusion if cond_channels else "none"
        emb_channels = 4 * channels[0]

        def make_attention(width: int) -> nn.Module:
            return Attention(width, num_head_channels=num_head_channels, num_heads=num_heads)

        attention = [make_attention if has else None for has in attention_levels]
        whole = max(sizes.stem) == 1

        def stem(c_in: int) -> nn.Module:
            return conv(spatial_dims, c_in, channels[0], sizes.kernels[0] if whole else sizes.stem, sizes.stem)

        embed = nn.Linear(channels[0], emb_channels)
        self.time_embed = nn.Sequential(embed, nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        self.class_embed = nn.Embedding(num_classes, emb_channels) if num_classes else None
        self.stem = stem(in_channels)
        self.encoder = Encoder(
            spatial_dims, channels, num_res_blocks, attention, emb_channels, sizes, resblock_updown, dropout
        )
        mid, reach = channels[-1], sizes.kernels[-1]
        self.mid1 = ResBlock(spatial_dims, mid, mid, emb_channels, dropout=dropout, kernel_size=reach)
        mid_attention = attention_levels[-1] if mid_attention is None else mid_attention
        self.mid_attention = make_attention(mid) if mid_attention else nn.Identity()
        self.mid2 = ResBlock(spatial_dims, mid, mid, emb_channels, dropout=dropout, kernel_size=reach)
        self.decoder = Decoder(
            spatial_dims,
            channels,
            num_res_blocks,
            attention,
            emb_channels,
            self.encoder.skip_channels,
            sizes,
            resblock_updown,
            dropout,
        )
        total_out = out_channels * (2 if learn_sigma else 1)
        self.norm_out = group_norm(channels[0])
        head = (
            conv(spatial_dims, channels[0], total_out, sizes.kernels[0])
            if whole
            else conv_transpose(spatial_dims, channels[0], total_out, sizes.stem)
        )
        self.head = zeroed(head)

        # The condition's own parts: none of them ever sees t or x_t.
        self.cond_stem = stem(cond_channels) if fusion in ("input", "encoder", "encoder_decoder") else None
        first = int(math.log2(cond_scale)) - len(sizes.stem_steps)
        scales = [first - level for level in range(len(channels))]

        def width_at(scale: int) -> int:
            """Half the width of the level at this scale, or of the nearest level."""
            return max(channels[min(max(first - scale, 0), len(channels) - 1)] // 2, 8)

        def pyramid(scales: Sequence[int], out_channels: Sequence[int], kernels: Sequence[Axes]) -> ConditionPyramid:
            return ConditionPyramid(spatial_dims, cond_channels, scales, out_channels, width_at, kernels, sizes)

        everywhere = (scales, channels, sizes.kernels)
        self.cond_encoder = pyramid(*everywhere) if fusion in ("encoder", "encoder_decoder") else None
        self.cond_decoder = pyramid(*everywhere) if fusion == "encoder_decoder" else None
        self.cond_bottleneck: ConditionPyramid | SecondEncoder | None = None
        if fusion == "bottleneck":
            self.cond_bottleneck = pyramid(scales[-1:], [mid], [reach])
        elif fusion == "dual_encoder":
            self.cond_bottleneck = SecondEncoder(
                stem(cond_channels),
                Encoder(spatial_dims, channels, num_res_blocks, attention, None, sizes, resblock_updown, dropout),
                ConditionJoin(spatial_dims, mid, mid, reach),
            )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | ConditionFeatures | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict from the noisy target.

        Args:
            x: x_t, shape (B, C, *S). B may be K times the images in ``context``; the K members of an image lie
                beside each other.
            timesteps: int or float, (B,) or (1,). One timestep for the whole batch is cheaper, given as (1,) or as that
                expanded to (B,), which is what the samplers do.
            context: the condition image (B, Cc, *S / cond_scale), or what ``encode`` returned.
            class_labels: int64 (B,) when the network has classes.

        Returns:
            (B, C or 2C, *S).

        Raises:
            ValueError: for a missing condition or class label, wrong channels, or a size not divisible by ``divisor``.
        """
        self._check(x)
        if context is None and self.cond_channels:
            raise ValueError("this network needs its condition image: pass context")
        if context is None or isinstance(context, Tensor):
            context = self.encode(context, size=x.shape[2:])
        emb = self._embed(timesteps, class_labels, x)
        h = self.stem(x)
        if context.stem is not None:
            h = add_per_image(h, context.stem)
        skips = self.encoder(h, emb, context.encoder)
        h = self.mid2(self.mid_attention(self.mid1(skips[-1], emb, context.bottleneck)), emb)
        h = self.decoder(h, skips, emb, context.decoder)
        return self.head(self.norm_out(h, silu=True))

    def encode(self, y: Tensor | None, size: Sequence[int] | None = None) -> ConditionFeatures:
        """Everything the network needs of the condition image; independent of t and x_t.

        Args:
            y: (B, Cc, *S'); None for an unconditional network.
            size: spatial size of x_t; by default the size of y times ``cond_scale``. A y of another size than
                ``size / cond_scale`` is resampled to it.

        Raises:
            ValueError: for a y of other channels or dimensions than the network's, or a size not divisible by
                ``divisor``.
        """
        if y is None or not self.cond_channels:
            return ConditionFeatures(None, (), None, ())
        if y.ndim != self.spatial_dims + 2 or y.shape[1] != self.cond_channels:
            raise ValueError(
                f"expected a condition of {self.cond_channels} channels and {self.spatial_dims} spatial dimensions, "
                f"got shape {tuple(y.shape)}"
            )
        size = tuple(size) if size is not None else tuple(self.cond_scale * n for n in y.shape[2:])
        self._check_size(size)
        small = self._resize(y, [n // self.cond_scale for n in size])
        stem = self.cond_stem(self._resize(y, size)) if self.cond_stem is not None else None
        encoder = self.cond_encoder(small) if self.cond_encoder is not None else ()
        decoder = self.cond_decoder(small) if self.cond_decoder is not None else ()
        bottleneck: Join | None = None
        if isinstance(self.cond_bottleneck, SecondEncoder):
            bottleneck = self.cond_bottleneck(self._resize(y, size))
        elif self.cond_bottleneck is not None:
            bottleneck = self.cond_bottleneck(small)[0]
        return ConditionFeatures(stem, encoder, bottleneck, decoder)

    def _embed(self, timesteps: Tensor, class_labels: Tensor | None, x: Tensor) -> Tensor:
        if timesteps.stride(0) == 0:
            timesteps = timesteps[:1]
        sinusoids = timestep_embedding(timesteps.to(x.device), self.model_channels)
        emb = self.time_embed(sinusoids.to(next(self.time_embed.parameters()).dtype))
        if (class_labels is None) != (self.class_embed is None):
            raise ValueError("class_labels must be given exactly when the network has num_classes")
        return emb if self.class_embed is None else emb + self.class_embed(class_labels)

    def _resize(self, y: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(y.shape[2:]) == tuple(size):
            return y
        mode = self.cond_interpolation if self.spatial_dims == 2 else "trilinear"
        return F.interpolate(y, tuple(size), mode=mode, align_corners=False)

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected {self.in_channels} channels and {self.spatial_dims} spatial dimensions, "
                f"got an input of shape {tuple(x.shape)}"
            )
        self._check_size(x.shape[2:])

    @property
    def divisor(self) -> int:
        """The greatest of ``divisors``, of which the sizes along the axes are multiples."""
        return max(self.divisors)

    def _check_size(self, size: Sequence[int]) -> None:
        if any(n % side for n, side in zip(size, self.divisors, strict=True)):
            by = self.divisor if len(set(self.divisors)) == 1 else self.divisors
            raise ValueError(f"spatial size {tuple(size)} must be divisible by {by}")


class SecondEncoder(nn.Module):
    """B2: an encoder of the same shape for y alone, joined at the bottleneck."""

    def __init__(self, stem: nn.Module, encoder: Encoder, join: ConditionJoin) -> None:
        super().__init__()
        self.stem, self.encoder, self.join = stem, encoder, join

    def forward(self, y: Tensor) -> Join:
        """y: (B, Cc, *S) at the size of x_t -> the pair for the bottleneck's first block."""
        return self.join(self.encoder(self.stem(y))[-1])
