"""ADM checkpoints: the reference output, every published tensor used, and wrong files explained."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shared_path
from torch import Tensor

from cgdpm_med.diffusion.sampling import sample, trajectory
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.networks.adm import (
    AdmTopology,
    adm_network,
    adm_tensors,
    adm_upsampler,
    load_adm_upsampler,
    read_topology,
)
from cgdpm_med.networks.classes import ClassConditioned, append_class
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.runtime.batching import sample_ensemble


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return torch.load(shared_path("reference", "adm_upsampler_tiny.pt"), weights_only=True)


@pytest.fixture(scope="module")
def tiny_file(reference: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adm") / "tiny_upsampler.pt"
    torch.save(reference["state_dict"], path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_file: Path) -> ConditionalUNet:
    return load_adm_upsampler(tiny_file, num_heads=4)


def published(name: str) -> dict[str, Tensor]:
    """Tensors of a published file, on the meta device."""
    tensors: dict[str, Tensor] = {}
    current = ""
    for line in shared_path("reference", "adm_upsampler_keys.txt").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\S+) \(([\d, ]+)\)", line):
            if current == name:
                shape = [int(n) for n in match[2].split(",") if n.strip()]
                tensors[match[1]] = torch.empty(shape, device="meta")
        else:
            current = line.split()[0] if line.strip() else current
    return tensors


def test_the_reference_output_is_reproduced(reference: dict, tiny: ConditionalUNet) -> None:
    inputs = [reference[key] for key in ("x_t", "timesteps", "low_res", "class_labels")]
    with torch.no_grad():
        output = tiny(*inputs)
        features = tiny.encode(reference["low_res"])
        encoded = tiny(inputs[0], inputs[1], features, inputs[3])
    assert (output - reference["output"]).abs().max() < 1e-4
    assert torch.equal(encoded, output)


def test_tensors_are_written_as_they_were_read(reference: dict, tiny: ConditionalUNet) -> None:
    written = adm_tensors(tiny, read_topology(reference["state_dict"]))
    assert set(written) == set(reference["state_dict"])
    assert all(torch.equal(tensor, reference["state_dict"][name].float()) for name, tensor in written.items())


def test_a_bias_of_the_condition_is_kept() -> None:
    """A network of ours that was trained has two biases where ADM has one."""
    torch.manual_seed(0)
    topology = AdmTopology(3, (8, 16), 1, (True, False), None, False)
    network = adm_network(topology, num_heads=1).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    again = adm_upsampler(adm_tensors(network, topology), num_heads=1)
    inputs = (torch.randn(1, 3, 16, 16), torch.tensor([7]), torch.randn(1, 3, 4, 4))
    with torch.no_grad():
        assert torch.allclose(again(*inputs), network(*inputs), atol=1e-5)


def test_the_head_split_matters(reference: dict) -> None:
    other = adm_upsampler(reference["state_dict"], num_heads=2)
    with torch.no_grad():
        output = other(*[reference[key] for key in ("x_t", "timesteps", "low_res", "class_labels")])
    assert (output - reference["output"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "count", "parameters", "heads", "first_attention"),
    [("up64_256", 567, 311_795_910, [4, 4, 4], 3), ("up128_512", 537, 308_835_270, [12, 12], 4)],
)
def test_every_published_tensor_is_used(
    name: str, count: int, parameters: int, heads: list[int], first_attention: int
) -> None:
    tensors = published(name)
    assert len(tensors) == count
    with torch.device("meta"):
        network: Any = adm_upsampler(tensors)
    ours = network.state_dict()
    # two more: the first convolution is split in two, and the condition's part has a bias of zero
    assert len(ours) == count + 2
    assert sum(p.numel() for p in ours.values()) == parameters + network.cond_stem.bias.numel()
    topology = read_topology(tensors)
    assert topology.channels == (192, 192, 384, 384, 768, 768)
    assert topology.attention_levels == tuple(level >= first_attention for level in range(6))
    assert (topology.num_res_blocks, topology.num_classes, topology.learn_sigma) == (2, 1000, True)
    assert [level[0].num_heads for level in network.encoder.attentions[first_attention:]] == heads
    assert network.mid_attention.num_heads == heads[-1]


def test_condition_branches_start_at_the_pretrained_model(reference: dict, tiny: ConditionalUNet) -> None:
    inputs = [reference[key] for key in ("x_t", "timesteps", "low_res", "class_labels")]
    network: Any = adm_upsampler(reference["state_dict"], num_heads=4, fusion="encoder")
    output = network(*inputs)
    with torch.no_grad():
        assert torch.equal(output, tiny(*inputs))
    # and yet they learn: a zero convolution of features that are not zero has a gradient
    output.square().sum().backward()
    for join in network.cond_encoder.joins:
        assert join.conv.weight.grad.abs().max() > 0
        assert join.skip.weight.grad.abs().max() > 0
    assert {name.split(".")[0] for name in network.state_dict().keys() - tiny.state_dict().keys()} == {"cond_encoder"}


# --- sampling as ADM does ---------------------------------------------------------------------------------------------


def adm_sampling_loop(network: ConditionalUNet, x: Tensor, low_res: Tensor, labels: Tensor, steps: int) -> Tensor:
    """ADM's ancestral sampling written from its paper's formulas, with noise from the global generator."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = [round(i * 999 / (steps - 1)) for i in range(steps)]
    alpha_bar = torch.cumprod(1 - betas, 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    beta = 1 - alpha_bar / before
    for i in reversed(range(steps)):
        with torch.no_grad():
            eps, v = network(x, torch.tensor([kept[i]] * len(x)), low_res, labels).chunk(2, dim=1)
        x0 = ((x - math.sqrt(1 - alpha_bar[i]) * eps) / math.sqrt(alpha_bar[i])).clamp(-1, 1)
        mean = beta[i] * math.sqrt(before[i]) / (1 - alpha_bar[i]) * x0
        mean = mean + (1 - before[i]) * math.sqrt(1 - beta[i]) / (1 - alpha_bar[i]) * x
        if i == 0:
            return mean.float()
        posterior = math.log(beta[i] * (1 - before[i]) / (1 - alpha_bar[i]))
        log_variance = (v + 1) / 2 * math.log(beta[i]) + (1 - v) / 2 * posterior
        x = (mean + (log_variance / 2).exp() * torch.randn(x.shape)).float()
    raise AssertionError


def test_class_conditional_sampling_is_adms(reference: dict, tiny: ConditionalUNet) -> None:
    x_T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    low_res, labels = reference["low_res"][:, :, :4, :4], reference["class_labels"]
    torch.manual_seed(2)
    expected = adm_sampling_loop(tiny, x_T, low_res, labels, steps=25)
    torch.manual_seed(2)
    condition = append_class(low_res, labels)
    settings: dict[str, Any] = {"method": "ddpm", "steps": 25, "clip": (-1, 1)}
    result = sample(ClassConditioned(tiny), x_T, condition, NoiseSchedule(), **settings)
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [25, 50, 250])
def test_respacing_keeps_adms_timesteps(steps: int) -> None:
    visited = [
        step.t
        for step in trajectory(
            lambda x, t, c: torch.cat([x, x], 1),
            torch.zeros(1, 1, 2, 2),
            None,
            NoiseSchedule(),
            steps=steps,
            method="ddpm",
        )
    ]
    fractional = [0.0]
    for _ in range(steps - 1):
        fractional.append(fractional[-1] + 999 / (steps - 1))
    assert visited == [round(t) for t in reversed(fractional)]


# --- classes travel with the condition --------------------------------------------------------------------------------


class LabelEcho(torch.nn.Module):
    """Predicts x_0 = label / 10 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, class_labels: Tensor) -> Tensor:
        assert context.shape[:2] == (len(x), 3)
        return (class_labels / 10).reshape(-1, 1, 1, 1).expand_as(x)


LABELS = torch.tensor([3, 9, 1, 7, 5])


@pytest.mark.parametrize("max_batch", [1, 4, 64])
def test_each_member_is_sampled_with_the_class_of_its_image(max_batch: int) -> None:
    condition = append_class(torch.zeros(5, 3, 4, 4), LABELS)
    members = sample_ensemble(
        ClassConditioned(LabelEcho()),
        condition,
        NoiseSchedule(prediction_type="sample"),
        shape=(3, 4, 4),
        members=3,
        steps=2,
        max_batch=max_batch,
    )
    expected = (LABELS / 10).reshape(1, 5, 1, 1, 1).expand(3, 5, 3, 4, 4)
    torch.testing.assert_close(members, expected)


def test_each_window_has_the_class_of_its_image() -> None:
    predictor = DiffusionPredictor(
        ClassConditioned(LabelEcho()),
        schedule=NoiseSchedule(prediction_type="sample"),
        target=ImageTarget(3, factor=2),
        members=2,
        steps=2,
        precision="float32",
    )
    condition = append_class(torch.zeros(5, 3, 6, 4), LABELS)
    members = predictor.ensemble(condition, wrap=lambda denoiser: WindowedDenoiser(denoiser, (8, 8), size_factor=2))
    torch.testing.assert_close(members, (LABELS / 10).reshape(1, 5, 1, 1, 1).expand(2, 5, 3, 12, 8))


def test_class_conditioning_equals_class_labels(reference: dict, tiny: ConditionalUNet) -> None:
    condition = append_class(reference["low_res"], reference["class_labels"])
    assert condition.shape == (2, 4, 8, 8)
    with torch.no_grad():
        output = ClassConditioned(tiny)(reference["x_t"], reference["timesteps"], condition)
    assert (output - reference["output"]).abs().max() < 1e-4


def test_a_large_class_index_is_not_rounded_in_silence() -> None:
    condition = append_class(torch.zeros(1, 3, 2, 2), torch.tensor([999]))
    assert ClassConditioned(LabelEcho()).encode(condition).labels.tolist() == [999]
    with pytest.raises(ValueError, match="bfloat16"):
        ClassConditioned(LabelEcho()).encode(condition.bfloat16())


# --- wrong files ------------------------------------------------------------------------------------------------------


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): value for name, value in tensors.items()}


WRONG = {
    "missing": (
        lambda s: {k: v for k, v in s.items() if k != "middle_block.0.in_layers.2.bias"},
        r"1 missing \(middle_block\.0\.in_layers\.2\.bias\)",
    ),
    "unexpected": (lambda s: {**s, "ema.decay": torch.zeros(1)}, r"1 unexpected \(ema\.decay\)"),
    "shape": (
        lambda s: {**s, "out.2.bias": torch.zeros(5)},
        r"1 of another shape \(out\.2\.bias \(5,\) instead of \(6,\)\)",
    ),
    "image model": (lambda s: {**s, "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)}, "without a low resolution"),
    "strided": (lambda s: {**s, "input_blocks.3.0.op.weight": torch.zeros(1)}, "resblock_updown=False"),
    "no blocks": (lambda s: {k: v for k, v in s.items() if not k.startswith("output_blocks.5")}, "do not mirror"),
    "another project": (lambda s: {"conv_in.weight": torch.zeros(1)}, r"lacks input_blocks.* holds conv_in\.weight"),
    "embedding": (lambda s: {**s, "time_embed.0.weight": torch.zeros(128, 16)}, "first channel multiplier"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_explained(case: str, reference: dict, tmp_path: Path) -> None:
    change, message = WRONG[case]
    path = tmp_path / "wrong.pt"
    torch.save(change(reference["state_dict"]), path)
    with pytest.raises(ValueError, match=rf"wrong\.pt: .*{message}") as caught:
        load_adm_upsampler(path, num_heads=4)
    assert "\n" not in str(caught.value)


def test_files_without_named_tensors_are_explained(reference: dict, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    torch.save(reference, path)
    with pytest.raises(ValueError, match=r"wrong\.pt: .*config.* hold no tensor"):
        load_adm_upsampler(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"wrong\.pt: holds a list"):
        load_adm_upsampler(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"wrong\.pt: not a checkpoint"):
        load_adm_upsampler(path)
    with pytest.raises(FileNotFoundError):
        load_adm_upsampler(tmp_path / "absent.pt")


def test_an_unknown_head_split_is_asked_for(tiny_file: Path) -> None:
    with pytest.raises(ValueError, match="give num_heads or num_head_channels as"):
        load_adm_upsampler(tiny_file)
    with pytest.raises(ValueError, match="not both"):
        load_adm_upsampler(tiny_file, num_heads=4, num_head_channels=16)
    with pytest.raises(ValueError, match="fusion 'input' or 'encoder'"):
        load_adm_upsampler(tiny_file, num_heads=4, fusion="bottleneck")
