"""Training the guidance network by replay against the literal algorithm, and what guidance costs when sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cgdpm_med import Autocast, GuidanceLoss, Replay, autocast_dtype, guide_from_denoiser, keep_freed_memory
from cgdpm_med.diffusion.losses import guidance_target
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.diffusion.targets import MaskTarget

from .contestants import CLASSES, SCALE, condition, mask_denoiser, schedule, shipped, shipped_unet
from .harness import Claim, Result, Table, alternate, median, ratio
from .scale import fit

T = 1000
INTERVALS = ((0, T), (0, 500), (0, 300))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=16, help="examples of a training step")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chain-steps", type=int, default=8, help="of a replayed chain, as the cardiac bundle has it")
    parser.add_argument("--iterations", type=int, default=14, help="training steps of a timing")
    parser.add_argument(
        "--literal-steps", type=int, nargs="+", default=[4, 8, 16], help="timed steps of a literal chain"
    )
    parser.add_argument("--steps", type=int, default=10, help="of the guided sampling")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.batch, arguments.size, arguments.iterations = 2, 32, 7
        arguments.literal_steps, arguments.repeats = [2, 4, 6], 1
    keep_freed_memory()  # as the bundles do, whose training this is on both sides
    device = torch.device(arguments.device)
    training = Training(arguments, device)
    work: dict[str, Callable[[], Any]] = {"replay": training.replay, "training step alone": training.one_step}
    for steps in arguments.literal_steps:
        work[f"literal, {steps} steps"] = partial(training.literal, steps)
    few = min(arguments.literal_steps)
    work[f"plain, {few} steps"] = lambda: training.literal(few, training.plain)
    times = alternate(work, arguments.repeats, arguments.device)
    replayed = [t / (arguments.iterations * arguments.batch) for t in times["replay"]]
    # a uniform t in 0 … T-1 takes T - 1 - t steps to reach x_t, and one evaluation there: (T + 1) / 2 on average
    evaluations = (T + 1) / 2
    literal, r2s = [], []
    for repeat in range(arguments.repeats):
        seconds = [times[f"literal, {steps} steps"][repeat] for steps in arguments.literal_steps]
        slope, offset, r2 = fit(arguments.literal_steps, seconds)
        literal.append((slope * evaluations + offset) / arguments.batch)
        r2s.append(r2)
    alone = times["training step alone"]
    plain = [
        ((t - one) / few * evaluations + one) / arguments.batch
        for t, one in zip(times[f"plain, {few} steps"], alone, strict=True)
    ]
    each = training.source.evaluations / training.source.examples
    claims = [
        Claim("frozen evaluations an example, literal / replay", evaluations / each, 400.0, unit="x"),
        ratio("examples a second with the training step, replay / literal", literal, replayed, 100.0),
        ratio("the same, literal in float32 with the condition at every step", plain, replayed),
        Claim("R2 of the literal time against its steps", median(r2s), 0.99),
    ]
    sampling, raw_sampling = sampling_cost(arguments)
    claims += sampling
    share = median(times["training step alone"]) / arguments.batch / median(replayed)
    rows = [
        ["literal", f"{evaluations:.1f}", f"{1 / median(literal):.3g}"],
        ["replay", f"{each:.2f}", f"{1 / median(replayed):.3g}"],
        ["the training step alone", "", f"{arguments.batch / median(times['training step alone']):.3g}"],
    ]
    tables = [Table("Training examples", ["", "frozen evaluations an example", "examples a second"], rows)]
    settings = {
        name: getattr(arguments, name)
        for name in ("batch", "size", "chain_steps", "iterations", "literal_steps", "steps")
    }
    raw = {"seconds": times, "guided": raw_sampling, "share of the training step in replay": share}
    return Result(settings, claims, tables, raw)


class Training:
    """The same guidance network, loss and optimiser under both sources of examples."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.arguments, self.schedule, self.device = arguments, schedule(), device
        self.dtype = autocast_dtype(device)
        self.frozen = Autocast(mask_denoiser(shipped_unet()).to(device).requires_grad_(False), device, self.dtype)
        network = mask_denoiser(shipped_unet()).to(device).requires_grad_(False)
        self.plain = lambda x_t, t, y: network(x_t, t, y)  # nothing computed ahead, float32
        channels_last: Any = {"memory_format": torch.channels_last}
        self.guide = guide_from_denoiser(shipped_unet(), self.schedule).to(device).train().to(**channels_last)
        self.loss = GuidanceLoss(self.schedule, "bounded")
        self.optimizer = torch.optim.AdamW(self.guide.parameters(), lr=1e-4, fused=True)  # as the bundles have it
        self.y = condition(arguments.batch, arguments.size, 3, arguments.device)
        shape = (arguments.batch, CLASSES, arguments.size, arguments.size)
        self.s_0 = SCALE * torch.randn(shape, generator=torch.Generator().manual_seed(1)).sign().to(device)
        generator = torch.Generator().manual_seed(0)
        self.source = Replay(
            self.frozen,
            self.schedule,
            generator=generator,
            capacity=max(640, arguments.chain_steps * arguments.batch),
            chains=1,
            steps=arguments.chain_steps,
            method="ddim",
            target=MaskTarget(CLASSES, SCALE),
        )

    def step(self, x_t: Tensor, t: Tensor, target: Tensor, y: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(self.guide, x_t, t, target, y)
        loss.backward()
        self.optimizer.step()

    def replay(self) -> None:
        """``iterations`` steps on replayed examples; a chain is walked whenever the buffer holds no batch."""
        source, batch = self.source, self.arguments.batch
        for _ in range(self.arguments.iterations):
            while len(source) < batch:
                source.fill(self.s_0, self.y)
            self.step(*source.draw(batch))

    def one_step(self) -> None:
        """A training step with examples that are there."""
        t = torch.full((self.arguments.batch,), 300, device=self.device)
        self.step(torch.randn_like(self.s_0), t, torch.randn_like(self.s_0), self.y)

    def literal(self, evaluations: int, frozen: Any = None) -> None:
        """One batch of the literal algorithm with so many frozen evaluations: down the DDPM chain, then a step."""
        frozen = self.frozen if frozen is None else frozen
        visited = range(T - evaluations + 1, T)
        with torch.no_grad():
            x_t = sample(
                frozen,
                torch.randn_like(self.s_0),
                self.y,
                self.schedule,
                method="ddpm",
                timesteps=list(visited),
                clip=(-SCALE, SCALE),
            )
            t = torch.full((len(x_t),), T - evaluations, device=self.device)
            eps = self.schedule.to_eps(frozen(x_t, t, frozen.encode(self.y)), x_t, t)
            target = guidance_target(eps, self.s_0, x_t, t, self.schedule)
        self.step(x_t, t, target, self.y)


def sampling_cost(arguments: argparse.Namespace) -> tuple[list[Claim], dict[str, Any]]:
    """Guided against unguided sampling, by interval."""
    common = {"members": 2, "steps": arguments.steps}
    y = condition(4, arguments.size, 3, arguments.device)
    plain = shipped(**common).to(arguments.device)
    work: dict[str, Callable[[], Any]] = {"unguided": lambda: plain.ensemble(y)}
    for interval in INTERVALS:
        model = shipped(guidance_scale=0.5, guidance_interval=list(interval), **common).to(arguments.device)
        work[f"guided for t in {interval[0]} … {interval[1]}"] = partial(model.ensemble, y)
    with torch.inference_mode():
        times = alternate(work, arguments.repeats, arguments.device)
    names = [name for name in times if name != "unguided"]
    shipped_interval = names[1]
    return [
        ratio(f"{name} / unguided", times[name], times["unguided"], 1.5 if name == shipped_interval else None, True)
        for name in names
    ], times
