"""What is minimised: the denoiser's loss, and that of the guidance network.

:class:`DiffusionLoss` draws t and eps and applies its target's objective (``objectives.py``). :class:`GuidanceLoss`
stands apart: its x_t are given to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .samplers import gaussian
from .sampling import split_variance
from .schedule import NoiseSchedule
from .targets import ImageTarget, Target

TimestepDraw = Callable[..., Tensor]
"""``draw(T, batch, generator, device) -> t``, int64 (B,)."""


def uniform_timesteps(T: int, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """t uniform over 0 … T-1, as in the training algorithm of Ho et al. (2020)."""
    return torch.randint(T, (batch,), generator=generator, device=device)


class NoisyTimesteps:
    """t drawn more often where noise prevails: t = floor(T (1 - u^power)), u uniform on [0, 1).

    The density grows like (1 - t/T)^(1/power - 1). At power 2, 45 % of the draws are at or above 0.8 T, where a mask
    must be found in the image alone, and 18 % below T/3, where x_t shows it. Power 1 is uniform.

    Raises:
        ValueError: for a power that is not positive.
    """

    def __init__(self, power: float = 2.0) -> None:
        if power <= 0:
            raise ValueError(f"power must be positive, not {power}")
        self.power = power

    def __call__(self, T: int, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        u = torch.rand(batch, generator=generator, device=device, dtype=torch.float64)
        return (T * (1 - u**self.power)).long().clamp(max=T - 1)  # u = 0 would be T


class DiffusionLoss(nn.Module):
    """Draw t and eps, form x_t by eq. (3), and score the network's output there.

    Args:
        schedule: the training schedule.
        target: what x_0 is, which decides how the output is scored; by default a picture.
        timesteps: how t is drawn, by default :func:`uniform_timesteps`. Another draw weighs the timesteps differently;
            what is best at each of them stays the same.

    Raises:
        ValueError: for a schedule that the target cannot be trained with.
    """

    def __init__(
        self, schedule: NoiseSchedule, target: Target | None = None, timesteps: TimestepDraw = uniform_timesteps
    ) -> None:
        super().__init__()
        self.target = target or ImageTarget()
        self.target.check(schedule)
        self.schedule = schedule
        self.timesteps = timesteps

    def forward(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        **network_arguments: Any,
    ) -> Tensor:
        """Mean loss over the batch, see :meth:`by_example`."""
        return self.by_example(network, x_0, context, generator=generator, **network_arguments)[1].mean()

    def by_example(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        **network_arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        """Timestep and loss of every example, (B,) each.

        Args:
            network: called as ``network(x_t, t, context, **network_arguments)``.
            x_0: targets, (B, C, *S).
            generator: of t and eps; the global one by default.
        """
        device = x_0.device if generator is None else generator.device
        t = self.timesteps(self.schedule.T, x_0.shape[0], generator, device).to(x_0.device)
        eps = gaussian(x_0, generator)
        x_t = self.schedule.q_sample(x_0, t, eps)
        output = network(x_t, t, context, **network_arguments)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return t, self.target.objective(output, x_0, eps, x_t, t, self.schedule)


class GuidanceLoss(nn.Module):
    """Eq. (10), || F + score_theta(x_t | y) - score(x_t | s_0) ||^2, for a network f = sqrt(1 - alpha_bar) F.

    With eqs. (11) and (12) the bracket is (f - target) / sqrt(1 - alpha_bar), the target being
    :func:`guidance_target`. Every weighting has the same minimiser; they differ in how much each timestep counts.

    Args:
        schedule: the denoiser's.
        weighting: "simple" is (1 - alpha_bar) times eq. (10), the mean squared error of f. "literal" is eq. (10) as
            printed, 1 / (1 - alpha_bar) times that: up to 10^4 at t = 0. "bounded" is min(1, 1 / SNR) times the error
            of f, with SNR = alpha_bar / (1 - alpha_bar): it counts the error of f where noise prevails, and of the
            implied x_0 where signal does, so that no timestep outweighs the others. "sample" is 1 / SNR times the
            error of f at every t, the error of the implied x_0: for denoisers that predict x_0 or v (see
            ``guidance.ScaledGuide``).

    Raises:
        ValueError: for an unknown weighting.
    """

    def __init__(self, schedule: NoiseSchedule, weighting: str = "simple") -> None:
        super().__init__()
        if weighting not in GUIDANCE_WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(GUIDANCE_WEIGHTINGS)}, not {weighting!r}")
        self.schedule = schedule
        self.weighting = weighting

    def forward(
        self,
        guide: Callable[..., Tensor],
        x_t: Tensor,
        t: Tensor,
        target: Tensor,
        context: Any = None,
        **network_arguments: Any,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            guide: called as ``guide(x_t, t, context, **network_arguments)``; only the first C channels of a network
                with learned variance count.
            x_t: (B, C, *S), from the reverse chain (the paper) or from q(x_t | s_0).
            t: int64, (B,).
            target: of f, as :func:`guidance_target` returns it.
        """
        f, _ = split_variance(guide(x_t, t, context, **network_arguments), x_t)
        return (guidance_weight(self.weighting, self.schedule, t, x_t) * (f.float() - target) ** 2).mean()


GUIDANCE_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "simple": torch.ones_like,
    "literal": lambda noise: 1 + 1 / noise,
    "bounded": lambda noise: noise.clamp(max=1),
    "sample": lambda noise: noise,
}
"""Weight of the squared error of f, as a function of the noise 1 / SNR = (1 - alpha_bar) / alpha_bar."""


def guidance_weight(weighting: str, schedule: NoiseSchedule, t: Tensor | int, like: Tensor) -> Tensor:
    """One of :data:`GUIDANCE_WEIGHTINGS` at t, ready to broadcast over ``like``."""
    sigma, a = (schedule.at(table, t, like) for table in ("sqrt_one_minus_alpha_bar", "sqrt_alpha_bar"))
    return GUIDANCE_WEIGHTINGS[weighting]((sigma / a) ** 2)


def guidance_target(eps: Tensor, s_0: Tensor, x_t: Tensor, t: Tensor | int, schedule: NoiseSchedule) -> Tensor:
    """What f should be on average: sqrt(1 - alpha_bar) (score(x_t | s_0) - score_theta(x_t | y)), eqs. (11, 12).

    Equally sqrt(SNR) times the error of the predicted x_0, which is how large it gets when t -> 0.

    Args:
        eps: the frozen denoiser's noise prediction at (x_t, t), (B, C, *S); ``schedule.to_eps`` makes it of any output.
        s_0: the true target, (B, C, *S).
    """
    return eps - schedule.eps_from_x0(s_0, x_t, t)
