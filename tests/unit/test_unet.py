"""ConditionalUNet: every fusion in two and three dimensions, the condition apart from t, and life inside MONAI."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import field
from torch import Tensor, nn

from cgdpm_med.networks import FUSIONS, ConditionalUNet
from cgdpm_med.networks.denoiser import Denoiser, features_of
from cgdpm_med.networks.unet import ConditionFeatures, ConditionPyramid, SecondEncoder

SMALL = {"channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, True), "num_head_channels": 8}


def build(seed: int = 0, **arguments: object) -> ConditionalUNet:
    """A tiny network with every parameter random, so that none of the zero-initialised layers hides a path."""
    net = ConditionalUNet(**{**SMALL, **arguments})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return net.eval()


T = torch.tensor([3, 700])


# --- the condition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_encoding_the_condition_first_changes_nothing(fusion: str, spatial_dims: int) -> None:
    net, size = build(spatial_dims=spatial_dims, fusion=fusion), (8, 4, 6)[:spatial_dims]
    x, y = field(2, 4, *size), field(2, 1, *size, seed=1)
    with torch.no_grad():
        direct = net(x, T, y)
        features = net.encode(y)
        assert direct.shape == x.shape
        assert torch.equal(net(x, T, features), direct)
        # the condition matters, at every pixel, and so do x_t and t
        assert (net(x, T, field(2, 1, *size, seed=2)) - direct).abs().amax(1).min() > 2e-5
        assert (net(x.flip(0), T, y) - direct).abs().mean() > 1e-4
        assert (net(x, T.flip(0), y) - direct).abs().mean() > 1e-4
        # images of a batch do not meet
        torch.testing.assert_close(net(x[1:], T[1:], y[1:]), direct[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_members_share_the_features_of_their_image(fusion: str) -> None:
    net, y, K = build(fusion=fusion), field(2, 1, 8, 8, seed=1), 3
    x, t = field(2 * K, 4, 8, 8), torch.full((1,), 400)
    with torch.no_grad():
        shared = net(x, t, net.encode(y))
        torch.testing.assert_close(shared, net(x, t, y.repeat_interleave(K, dim=0)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(shared, net(x, t, y.repeat(K, 1, 1, 1)), atol=1e-3)  # members lie beside each other


def test_features_can_be_selected_by_image() -> None:
    net, y, x = build(fusion="encoder_decoder"), field(3, 1, 8, 8, seed=1), field(2, 4, 8, 8)
    with torch.no_grad():
        chosen = net.encode(y).map(lambda f: f[[2, 0]])
        torch.testing.assert_close(net(x, T, chosen), net(x, T, y[[2, 0]]), rtol=1e-4, atol=1e-5)


def present(features: ConditionFeatures) -> dict[str, int]:
    """How many tensors of the condition stand in each place."""
    return {
        "stem": int(features.stem is not None),
        "encoder": len(features.encoder),
        "bottleneck": int(features.bottleneck is not None),
        "decoder": len(features.decoder),
    }


@pytest.mark.parametrize(
    ("fusion", "places"),
    [
        ("input", {"stem": 1, "encoder": 0, "bottleneck": 0, "decoder": 0}),
        ("bottleneck", {"stem": 0, "encoder": 0, "bottleneck": 1, "decoder": 0}),
        ("dual_encoder", {"stem": 0, "encoder": 0, "bottleneck": 1, "decoder": 0}),
        ("encoder_decoder", {"stem": 1, "encoder": 2, "bottleneck": 0, "decoder": 2}),
        ("encoder", {"stem": 1, "encoder": 2, "bottleneck": 0, "decoder": 0}),
    ],
)
def test_each_fusion_joins_where_the_paper_says(fusion: str, places: dict[str, int]) -> None:
    net = build(fusion=fusion)
    assert present(net.encode(field(1, 1, 8, 8))) == places
    if fusion == "bottleneck":
        assert isinstance(net.cond_bottleneck, ConditionPyramid)
        assert len(net.cond_bottleneck.branches) == 1
    if fusion == "dual_encoder":
        assert isinstance(net.cond_bottleneck, SecondEncoder)
        twin = {name: tuple(p.shape) for name, p in net.encoder.named_parameters() if ".emb." not in name}
        second = {name: tuple(p.shape) for name, p in net.cond_bottleneck.encoder.named_parameters()}
        assert second == twin  # of the same shape, but blind to t


def test_input_fusion_is_a_concatenation_at_the_first_convolution() -> None:
    net: Any
    net, x, y = build(fusion="input"), field(2, 4, 8, 8), field(2, 1, 8, 8, seed=1)
    weight = torch.cat([net.stem.weight, net.cond_stem.weight], dim=1)
    expected = F.conv2d(torch.cat([x, y], dim=1), weight, net.stem.bias + net.cond_stem.bias, padding=1)
    assert net.encode(y).stem is not None
    torch.testing.assert_close(net.stem(x) + net.encode(y).stem, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("updown", [False, True])
def test_gradients_reach_every_parameter(fusion: str, updown: bool) -> None:
    # two channels in each group of the normalisation: alone in its group, a channel would lose its bias
    net = build(
        fusion=fusion,
        channels=(64, 64),
        attention_levels=(False, True),
        num_classes=3,
        learn_sigma=True,
        resblock_updown=updown,
    )
    x, y = field(2, 4, 4, 4), field(2, 1, 4, 4, seed=1)
    output = net(x, T, y, class_labels=torch.tensor([0, 2]))
    (output * field(*output.shape, seed=2)).sum().backward()
    unreached = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 1e-6)]
    assert unreached == []


def test_output_starts_at_zero() -> None:
    torch.manual_seed(0)
    net = ConditionalUNet(**SMALL)  # type: ignore[arg-type]
    assert torch.equal(net(field(2, 4, 8, 8), T, field(2, 1, 8, 8)), torch.zeros(2, 4, 8, 8))


def test_unconditional_network_takes_no_context() -> None:
    for fusion in FUSIONS:
        net = build(cond_channels=0, fusion=fusion)
        assert not [name for name, _ in net.named_parameters() if name.startswith("cond_")]
        assert net(field(1, 4, 8, 8), T[:1]).shape == (1, 4, 8, 8)


# --- timesteps, classes, variance, patches, scales ------------------------------------------------------------------


def test_timesteps_of_training_and_of_sampling_are_the_same() -> None:
    net, x, y = build(), field(2, 4, 8, 8), field(2, 1, 8, 8, seed=1)
    with torch.no_grad():
        training = net(x, torch.tensor([41, 41]), y)
        torch.testing.assert_close(net(x, torch.tensor([41.0]), y), training, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(x, torch.tensor([41], dtype=torch.int32), y), training, rtol=1e-5, atol=1e-5)


def test_class_labels_choose_an_embedding() -> None:
    net: Any
    net, x, y = build(num_classes=3), field(2, 4, 8, 8), field(2, 1, 8, 8, seed=1)
    with torch.no_grad():
        out = net(x, T, y, class_labels=torch.tensor([0, 2]))
        other = net(x, T, y, class_labels=torch.tensor([1, 2]))
        assert (out[0] - other[0]).abs().mean() > 1e-3
        torch.testing.assert_close(out[1], other[1], rtol=1e-5, atol=1e-5)
        net.class_embed.weight.zero_()
        plain = build(num_classes=None)
        plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("class_embed")})
        torch.testing.assert_close(net(x, T, y, class_labels=torch.tensor([0, 2])), plain(x, T, y))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_learned_variance_doubles_the_channels(patch_size: int) -> None:
    net = build(learn_sigma=True, patch_size=patch_size, out_channels=3)
    assert net(field(1, 4, 16, 8), T[:1], field(1, 1, 16, 8)).shape == (1, 6, 16, 8)


def test_patches_are_read_and_written_without_overlap() -> None:
    net: Any
    net, x = build(patch_size=2, fusion="input"), field(1, 4, 8, 8)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, 4, 4, 4, 2, 2)
    expected = torch.einsum("bchwij,ocij->bohw", patches, net.stem.weight) + net.stem.bias[:, None, None]
    torch.testing.assert_close(net.stem(x), expected, rtol=1e-5, atol=1e-5)
    h = field(1, 8, 4, 4)
    written = net.head(h)
    expected = torch.einsum("bchw,coij->bohiwj", h, net.head.weight).reshape(1, 4, 8, 8)
    torch.testing.assert_close(written, expected + net.head.bias[:, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("cond_scale", "patch_size"), [(1, 1), (8, 1), (2, 1), (1, 2), (4, 2), (1, 4)])
def test_features_meet_every_level_at_its_size(fusion: str, cond_scale: int, patch_size: int) -> None:
    net = build(fusion=fusion, cond_scale=cond_scale, patch_size=patch_size)
    x, y = field(1, 4, 32, 16), field(1, 1, 32 // cond_scale, 16 // cond_scale)
    with torch.no_grad():
        features = net.encode(y)
        assert torch.equal(net(x, T[:1], y), net(x, T[:1], features))
    for joins in (features.encoder, features.decoder):
        for level, join in enumerate(joins):
            side = patch_size * 2**level
            assert join is not None
            for tensor in join:
                assert tensor.shape == (1, (8, 16)[level], 32 // side, 16 // side)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_low_resolution_condition_is_upsampled_eightfold(interpolation: str) -> None:
    net: Any = build(
        in_channels=3,
        cond_channels=3,
        out_channels=3,
        attention_levels=(False, False),
        cond_scale=8,
        cond_interpolation=interpolation,
    )
    y, x = field(1, 3, 16, 16), field(1, 3, 128, 128, seed=1)
    with torch.no_grad():
        features = net.encode(y)
        upsampled = F.interpolate(y, scale_factor=8, mode=interpolation, align_corners=False)
        assert features.stem is not None
        torch.testing.assert_close(features.stem, net.cond_stem(upsampled))
        fine, coarse = net.cond_encoder.branches
        # three doublings to the finest level, two to the next, each a nearest up-sampling and a convolution
        assert (len(fine.layers), len(coarse.layers)) == (4, 3)
        h = fine.layers[0](y)
        for layer in fine.layers[1:]:
            h = layer(F.silu(h).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        join = net.cond_encoder.joins[0]
        torch.testing.assert_close(features.encoder[0][1], join.skip(h))
        torch.testing.assert_close(features.encoder[0][0], join.conv(F.silu(join.norm(h))))
        assert torch.equal(net(x, T[:1], y), net(x, T[:1], features))


def test_condition_of_another_size_is_resampled() -> None:
    net, x, y = build(fusion="encoder"), field(1, 4, 8, 8), field(1, 1, 12, 12)
    with torch.no_grad():
        resampled = F.interpolate(y, (8, 8), mode="bicubic", align_corners=False)
        assert torch.equal(net(x, T[:1], y), net(x, T[:1], resampled))
        assert torch.equal(net(x, T[:1], net.encode(y, size=(8, 8))), net(x, T[:1], resampled))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "late"}, "fusion must be one of input, bottleneck"),
        ({"attention_levels": (True,)}, "attention_levels has 1 entries for 2 levels"),
        ({"cond_scale": 3}, "cond_scale must be a power of two, not 3"),
        ({"patch_size": 0}, "patch_size must be a power of two, not 0"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, not 1"),
        ({"num_heads": 3}, "cannot be shared by 3 attention heads"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalUNet(**{**SMALL, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((1, 4, 8, 8), None, "needs its condition image"),
        ((1, 4, 9, 8), (1, 1, 9, 8), r"\(9, 8\) must be divisible by 2"),
        ((1, 3, 8, 8), (1, 1, 8, 8), "expected 4 channels and 2 spatial dimensions"),
        ((1, 4, 8, 8, 8), (1, 1, 8, 8, 8), "expected 4 channels and 2 spatial dimensions"),
        ((1, 4, 8, 8), (1, 2, 8, 8), "expected a condition of 1 channels"),
        ((1, 4, 8, 8), (1, 1, 8), "expected a condition of 1 channels"),
        ((3, 4, 8, 8), (2, 1, 8, 8), "multiple of the images"),
    ],
)
def test_impossible_inputs_are_refused(x: tuple[int, ...], y: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(field(*x), T[:1], None if y is None else field(*y))


def test_features_that_would_pass_for_an_image_are_refused() -> None:
    class Bare(Denoiser):
        def encode(self, y: Tensor) -> Tensor:
            return 2 * y

    with pytest.raises(TypeError, match=r"Bare\.encode returned a bare tensor: return a tuple"):
        features_of(Bare(), torch.zeros(1, 1, 4, 4))


def test_features_of_another_size_are_refused() -> None:
    net = build()
    with pytest.raises(ValueError, match="size the condition was encoded for"):
        net(field(1, 4, 8, 8), T[:1], net.encode(field(1, 1, 16, 16)))
    with pytest.raises(ValueError, match="must be divisible by 2"):
        net.encode(field(1, 1, 7, 8))
    with pytest.raises(ValueError, match="must be divisible by 8"):  # else y would lose its border
        build(cond_scale=8)(field(1, 4, 12, 12), T[:1], field(1, 1, 1, 1))


@pytest.mark.parametrize(("classes", "labels"), [(None, torch.tensor([0])), (3, None)])
def test_class_labels_go_with_classes(classes: int | None, labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match="class_labels"):
        build(num_classes=classes)(field(1, 4, 8, 8), T[:1], field(1, 1, 8, 8), class_labels=labels)


# --- inside MONAI, and exported -------------------------------------------------------------------------------------


def test_monai_training_call_and_prepare_batch() -> None:
    from monai.engines.utils import DiffusionPrepareBatch
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    net: Any = build(in_channels=1, out_channels=1)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    batch = {"image": field(2, 1, 8, 8), "mri": field(2, 1, 8, 8, seed=1)}
    torch.manual_seed(0)
    image, target, args, kwargs = DiffusionPrepareBatch(1000, condition_name="mri")(batch)
    assert kwargs["timesteps"].dtype == torch.int64
    prediction = DiffusionInferer(scheduler)(image, net, *args, **kwargs)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)[kwargs["timesteps"]].reshape(2, 1, 1, 1)
    noisy = alpha_bar.sqrt() * batch["image"] + (1 - alpha_bar).sqrt() * target
    torch.testing.assert_close(prediction, net(noisy, kwargs["timesteps"], batch["mri"]), rtol=1e-4, atol=1e-4)
    F.mse_loss(prediction, target).backward()
    assert net.cond_encoder.branches[0].layers[0].weight.grad.abs().max() > 0


def test_monai_sampling_equals_a_loop() -> None:
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    net, y, x_T = build(in_channels=1, out_channels=1), field(2, 1, 8, 8, seed=1), field(2, 1, 8, 8)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(4)
    sampled = DiffusionInferer(scheduler).sample(x_T, net, scheduler, conditioning=y, verbose=False)
    x = x_T
    with torch.no_grad():
        features = net.encode(y)
        for t in scheduler.timesteps:
            x, _ = scheduler.step(net(x, torch.full((2,), int(t)), features), t, x)
    torch.testing.assert_close(sampled, x, rtol=1e-4, atol=1e-4)
    assert bool(sampled.isfinite().all())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are constants of a trace
def test_traced_network_gives_the_same_values() -> None:
    net, inputs = build(fusion="encoder_decoder"), (field(2, 4, 8, 8), T, field(2, 1, 8, 8, seed=1))
    with torch.no_grad():
        traced = torch.jit.trace(net, inputs, check_trace=False)
        others = (field(2, 4, 8, 8, seed=5), T.flip(0), field(2, 1, 8, 8, seed=6))
        torch.testing.assert_close(traced(*others), net(*others))


def test_parameter_counts_follow_the_strategies() -> None:
    counts = {fusion: sum(p.numel() for p in build(fusion=fusion).parameters()) for fusion in FUSIONS}
    assert all(a != b for a, b in itertools.combinations(counts.values(), 2))
    assert counts["input"] < counts["encoder"] < counts["encoder_decoder"]
    assert counts["bottleneck"] < counts["dual_encoder"]
