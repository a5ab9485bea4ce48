"""NoiseSchedule: the diffusion process in tables (paper, eqs. 1-7 and 11).

The tables are float64 and never leave the schedule: what a formula needs is gathered, and cast only when it meets
the data. Timestep t = 0 … T-1 indexes the tables; ``alpha_bar`` before t = 0 is 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cgdpm_med.networks.arguments import KeepsArguments

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
# x_0 from eps at T-1 multiplies the network's error by 1 / sqrt(alpha_bar): 157 for linear betas, 20,290 for the cosine
ILL_POSED_GAIN = 1000.0
NEGLIGIBLE = 1e-7
"""Greatest alpha_bar at which x_t counts as noise. What a state holds of an image is at most alpha_bar a pixel, summed
over the pixels: 0.007 for 256 x 256 of them. The cosine ends at 2e-9, linear betas at 4e-5, which is too much."""


def linear_beta(T: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """Ho et al. (2020), with the end points scaled by 1000 / T so that any T adds about the same total noise.

    Returns:
        beta, float64, shape (T,), like every function of :data:`SCHEDULES`.
    """
    scale = 1000 / T
    return torch.linspace(scale * beta_start, min(scale * beta_end, 0.999), T, dtype=torch.float64)


def constant_beta_range(T: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Tensor:
    """Ho et al. (2020) with the same end points for every T, so that more steps add more noise (paper, figure 4)."""
    return torch.linspace(beta_start, beta_end, T, dtype=torch.float64)


def cosine(T: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Nichol & Dhariwal (2021): alpha_bar follows a squared cosine, and all but reaches 0 at t = T-1.

    Train "sample" or "v_prediction" with it: at t = T-1 the noise says nothing about x_0.
    """
    u = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear_beta": linear_beta,
    "constant_beta_range": constant_beta_range,
    "cosine": cosine,
}


class NoiseSchedule(KeepsArguments):
    """The noise added at each timestep, and every conversion that follows from it.

    Tables, float64 on the CPU, shape (T,): ``beta``, ``alpha``, ``alpha_bar``, ``alpha_bar_prev``, ``sqrt_alpha_bar``,
    ``sqrt_one_minus_alpha_bar``, ``posterior_variance``, ``posterior_log_variance``, ``posterior_coef_x0``,
    ``posterior_coef_xt`` and ``log_snr``. Methods that take t accept an int, one timestep for the whole batch, or an
    int64 tensor (B,).

    Args:
        num_train_timesteps: T.
        schedule: a name of :data:`SCHEDULES`, or the betas themselves, shape (T,), in (0, 1).
        prediction_type: what a network trained with this schedule predicts: "epsilon", "sample" (x_0) or
            "v_prediction" (Salimans & Ho, 2022).
        timesteps: the timestep the network is told at each index; 0 … T-1 unless the schedule was respaced.

    Raises:
        ValueError: for an unknown name, or betas outside (0, 1).

    Warns:
        UserWarning: for epsilon prediction where alpha_bar[T-1] is so small that it is ill-posed, as under "cosine".
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: str | Tensor = "linear_beta",
        prediction_type: str = "epsilon",
        timesteps: Tensor | None = None,
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, not {prediction_type!r}")
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
            if num_train_timesteps < 1:
                raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}")
            beta = SCHEDULES[schedule](num_train_timesteps)
        else:
            beta = schedule.to(torch.float64)
        if beta.ndim != 1 or len(beta) == 0 or not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError("betas must be a vector of numbers strictly between 0 and 1")
        if timesteps is not None and len(timesteps) != len(beta):
            raise ValueError(f"{len(timesteps)} timesteps for {len(beta)} betas")
        self.prediction_type = prediction_type
        self.T = len(beta)
        self.timesteps = torch.arange(self.T) if timesteps is None else timesteps.cpu()
        self.beta = beta
        self.alpha = 1 - beta
        self.alpha_bar = torch.cumprod(self.alpha, dim=0)
        self.alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        # tables of their own: 1 - alpha_bar taken in float32 would be off by 6e-4 at t = 0
        self.sqrt_alpha_bar = self.alpha_bar.sqrt()
        self.sqrt_one_minus_alpha_bar = (1 - self.alpha_bar).sqrt()
        # lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), the clock of DPM-Solver
        self.log_snr = 0.5 * (self.alpha_bar.log() - torch.log1p(-self.alpha_bar))
        # eq. (6), left; at t = 0 it is zero, and its logarithm borrows the value at t = 1 as ADM does
        self.posterior_variance = beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        floor = self.posterior_variance[1:2] if self.T > 1 else beta[:1]
        self.posterior_log_variance = torch.cat([floor, self.posterior_variance[1:]]).log()
        # eq. (6), right: mean = posterior_coef_x0 * x_0 + posterior_coef_xt * x_t
        self.posterior_coef_x0 = beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        self.posterior_coef_xt = (1 - self.alpha_bar_prev) * self.alpha.sqrt() / (1 - self.alpha_bar)
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        if timesteps is None and prediction_type == "epsilon":
            _warn_if_ill_posed(float(self.sqrt_alpha_bar[-1]))

    def at(self, table: str, t: Tensor | int, like: Tensor) -> Tensor:
        """Gather ``table`` at ``t`` in the precision a computation on ``like`` should have (at least float32).

        Returns:
            shape (B, 1, …) to broadcast against ``like`` of shape (B, …). For an integer ``t`` B = 1, or a tensor
            without dimensions where ``like`` has that precision already.
        """
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        if isinstance(t, int):
            value = torch.tensor(float(getattr(self, table)[t]), dtype=dtype)
            if like.dtype == dtype:
                return value  # kernels take it as an argument; with dimensions it would lift the precision of ``like``
            return value.to(like.device).reshape((1,) * like.ndim)
        key = (table, t.device, dtype)
        if key not in self._copies:
            self._copies[key] = getattr(self, table).to(dtype).to(t.device)
        return self._copies[key][t].to(like.device).reshape(-1, *[1] * (like.ndim - 1))

    def respace(self, timesteps: Sequence[int] | Tensor) -> NoiseSchedule:
        """The same process observed at fewer timesteps: betas from the ratios of the kept alpha_bar.

        Args:
            timesteps: the kept indices, strictly ascending.

        Returns:
            A schedule with len(timesteps) entries whose ``timesteps`` are the kept ones: what the network is told.

        Raises:
            ValueError: for timesteps that do not ascend, or lie outside 0 … T-1.
        """
        kept = torch.as_tensor(timesteps, dtype=torch.int64)
        if len(kept) == 0 or bool((kept.diff() <= 0).any()) or kept[0] < 0 or kept[-1] >= self.T:
            raise ValueError(f"timesteps must ascend strictly within 0 … {self.T - 1}, got {kept.tolist()}")
        alpha_bar = self.alpha_bar[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta = self.beta if len(kept) == self.T else 1 - alpha_bar / previous
        return NoiseSchedule(self.T, beta, self.prediction_type, self.timesteps[kept])

    def is_noise(self, t: int, tolerance: float = NEGLIGIBLE) -> bool:
        """Whether x_t holds next to nothing of x_0: alpha_bar at index t is at most ``tolerance``."""
        return float(self.alpha_bar[t]) <= tolerance

    def q_sample(self, x_0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """Eq. (3): x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, in the dtype of ``x_0``."""
        signal, noise = self._signal_and_noise(t, x_0)
        return (signal * x_0 + noise * eps).to(x_0.dtype)

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Eqs. (6, 7): mean (B, …) and variance (B, 1, …) of q(x_{t-1} | x_t, x_0)."""
        mean = self.at("posterior_coef_x0", t, x_t) * x_0 + self.at("posterior_coef_xt", t, x_t) * x_t
        return mean, self.at("posterior_variance", t, x_t)

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho, 2022); (B, C, …) -> (B, C, …)."""
        signal, noise = self._signal_and_noise(t, x_0)
        return signal * eps - noise * x_0

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """The x_0 a network output stands for, by ``prediction_type``; (B, C, …) -> (B, C, …)."""
        signal, noise = self._signal_and_noise(t, x_t)
        if self.prediction_type == "sample":
            return output.to(signal.dtype)
        if self.prediction_type == "epsilon":
            return (x_t - noise * output) / signal
        return signal * x_t - noise * output

    def to_eps(self, output: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """The eps a network output stands for, by ``prediction_type``; (B, C, …) -> (B, C, …)."""
        signal, noise = self._signal_and_noise(t, x_t)
        if self.prediction_type == "epsilon":
            return output.to(signal.dtype)
        if self.prediction_type == "sample":
            return self.eps_from_x0(output, x_t, t)
        return noise * x_t + signal * output

    def eps_from_x0(self, x_0: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)."""
        signal, noise = self._signal_and_noise(t, x_t)
        return (x_t - signal * x_0) / noise

    def score(self, eps: Tensor, t: Tensor | int) -> Tensor:
        """Eq. (11): grad log p(x_t) = -eps / sqrt(1 - alpha_bar)."""
        return -eps / self.at("sqrt_one_minus_alpha_bar", t, eps)

    def _signal_and_noise(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar), ready to broadcast."""
        return self.at("sqrt_alpha_bar", t, like), self.at("sqrt_one_minus_alpha_bar", t, like)


def linspace_timesteps(T: int, steps: int) -> Tensor:
    """``steps`` timesteps from 0 to T-1, evenly spaced and rounded, ascending; the last one alone when steps = 1."""
    _check_steps(T, steps)
    if steps == 1:
        return torch.tensor([T - 1])
    return torch.linspace(0, T - 1, steps, dtype=torch.float64).round().to(torch.int64)


def log_snr_timesteps(schedule: NoiseSchedule, steps: int) -> Tensor:
    """``steps`` timesteps from 0 to T-1, evenly spaced in log-SNR, ascending (Lu et al., 2022).

    Near t = 0 the log-SNR changes by more between neighbours than the spacing asks for: there every timestep is used
    and the spacing continues behind.
    """
    T = schedule.T
    _check_steps(T, steps)
    if steps == 1:
        return torch.tensor([T - 1])
    log_snr = schedule.log_snr
    wanted = torch.linspace(float(log_snr[0]), float(log_snr[-1]), steps, dtype=torch.float64)
    nearest = (log_snr[None] - wanted[:, None]).abs().argmin(dim=1)
    index = torch.arange(steps)
    ascending = torch.cummax(nearest - index, dim=0).values + index
    return torch.minimum(ascending, T - steps + index)


def _warn_if_ill_posed(sqrt_alpha_bar: float) -> None:
    if sqrt_alpha_bar * ILL_POSED_GAIN < 1:
        warnings.warn(
            f"epsilon prediction is ill-posed at t = T-1 of this schedule: x_0 = (x_t - …) / {sqrt_alpha_bar:.1e}. "
            "Use prediction_type 'v_prediction' or 'sample', or betas that leave more of x_0.",
            UserWarning,
            stacklevel=3,
        )


def _check_steps(T: int, steps: int) -> None:
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be between 1 and {T} (the timesteps of the schedule), not {steps}")
