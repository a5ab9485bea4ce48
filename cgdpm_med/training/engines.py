"""Parts for MONAI's SupervisedTrainer: what a batch means, what an iteration does, and an exact resume.

A training run is ``SupervisedTrainer(loss_function=DiffusionLoss(…), prepare_batch=TargetPrepareBatch(…),
iteration_update=DiffusionUpdate(…), train_handlers=[TrainingState(…), …])``; ignite's EMAHandler keeps the average.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor

from cgdpm_med.data.slices import PLACE, EpochSampler, with_places
from cgdpm_med.diffusion.ensemble import key_seed
from cgdpm_med.diffusion.targets import Target
from cgdpm_med.files import InputError, archive_damage, atomic_write
from cgdpm_med.models.description import ModelDescription
from cgdpm_med.models.files import check_continues, save_model
from cgdpm_med.models.weights import save_weights
from cgdpm_med.runtime.layers import optimise
from cgdpm_med.runtime.precision import autocast_dtype, check_precision


class TargetPrepareBatch:
    """Batch to (x_0, y): the encoded truth is the diffusion target, the image is its condition.

    Args:
        target: how truth is encoded.
        truth_key, condition_key: of the batch; for super-resolution "image" and "condition".
        augment: ``augment(y, truth) -> (y, truth)`` on the whole batch, for example :class:`~cgdpm_med.SliceAugment`;
            None for validation.

    Where a batch also holds ``place`` (B, P), as :class:`~cgdpm_med.data.slices.SliceDataset` gives it, the network is
    shown these numbers beside the image, each as a channel of its own; nothing augments them.
    """

    def __init__(
        self,
        target: Target,
        truth_key: str = CommonKeys.LABEL,
        condition_key: str = CommonKeys.IMAGE,
        augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.target, self.augment = target, augment
        self.truth_key, self.condition_key = truth_key, condition_key

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        y = _plain(batchdata[self.condition_key]).to(device, non_blocking=non_blocking)
        truth = _plain(batchdata[self.truth_key]).to(device, non_blocking=non_blocking)
        if self.augment is not None:
            y, truth = self.augment(y, truth)
        if PLACE in batchdata:
            y = with_places(y, _plain(batchdata[PLACE]))
        return self.target.encode(truth, y), y


def _plain(x: Tensor) -> Tensor:
    """MetaTensor bookkeeping costs time in a training loop and is of no use there."""
    return x.as_subclass(Tensor) if type(x) is not Tensor else x


class DiffusionUpdate:
    """One training iteration, for ``SupervisedTrainer(iteration_update=…)``.

    Calls ``engine.loss_function(network, *batch)`` with what ``prepare_batch`` returned, (x_0, y) for
    :class:`~cgdpm_med.DiffusionLoss`, so the loss decides where the network is evaluated; the engine's inferer does it.
    The first of the batch is the engine's label, the last its image. MONAI's own mixed precision exists on CUDA alone
    and would leave a CPU in float32.

    Args:
        precision: "float32", "bfloat16" or "auto" (bfloat16 where the device is fast at it). The weights, the
            optimiser and the loss stay float32; bfloat16 needs no gradient scaling.
        max_grad_norm: gradients are clipped to this norm.

    Raises:
        ValueError: for an unknown precision.
        FloatingPointError: in an iteration whose loss or gradient is not finite, naming it; the weights are left as
            they were.
    """

    def __init__(self, precision: str = "auto", max_grad_norm: float = 1.0) -> None:
        self.precision, self.max_grad_norm = check_precision(precision), max_grad_norm

    def __call__(self, engine: Any, batchdata: Mapping[str, Tensor]) -> dict[str, Any]:
        device = torch.device(engine.state.device)
        batch = engine.prepare_batch(batchdata, device, engine.non_blocking, **engine.to_kwargs)
        engine.state.output = {CommonKeys.IMAGE: batch[-1], CommonKeys.LABEL: batch[0]}
        optimise(engine.network).train()
        engine.optimizer.zero_grad(set_to_none=True)
        dtype = autocast_dtype(device, self.precision)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = engine.loss_function(partial(_inferred, engine), *batch)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output[CommonKeys.LOSS] = loss.detach()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        loss.backward()
        # only now: reading a number waits for a GPU, which already has the backward pass to go on with
        engine.state.output[CommonKeys.LOSS] = loss.item()
        if not np.isfinite(engine.state.output[CommonKeys.LOSS]):
            raise FloatingPointError(f"the loss is {loss.item()} at iteration {engine.state.iteration}")
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_grad_norm)
        if not torch.isfinite(norm):  # the optimizer would spread it to every weight
            raise FloatingPointError(f"a gradient is {norm.item()} at iteration {engine.state.iteration}")
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def _inferred(engine: Any, x_t: Tensor, *arguments: Any, **named: Any) -> Any:
    return engine.inferer(x_t, engine.network, *arguments, **named)


class WarmupCosine(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate: linear warm-up, then a half cosine down to ``floor`` of its peak.

    Args:
        total: iterations of the whole run; stepped once per iteration by :class:`TrainingState`.
        warmup: iterations of the warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total: int, warmup: int = 100, floor: float = 0.01) -> None:
        def factor(i: int) -> float:
            if i < warmup:
                return (i + 1) / warmup
            progress = min(1.0, (i - warmup) / max(1, total - warmup))
            return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * progress)))

        super().__init__(optimizer, factor)


class TrainingState:
    """Saves after every epoch all that a bit-exact continuation needs, and continues from it when it is there.

    The checkpoint holds the given objects (network, EMA, optimiser, scheduler, …), the random states of torch, numpy
    and Python, and the trainer's place. Epochs are keyed by number (``EpochSampler``), so a place between epochs is
    the loader's position. A killed run loses at most the epoch it was in.

    Args:
        path: of the checkpoint; written atomically.
        objects: by name, anything with state_dict and load_state_dict.
        sampler: told the epoch before each pass.
        lr_scheduler: stepped after every iteration, and saved.
        resume: continue from ``path`` when it exists. A trainer that runs on, as in the rounds of federated learning,
            keeps its place and the weights it was given.
        averages: names of objects that start as copies of others, also where weights came in from outside: a moving
            average, by the network it is taken of.

    Raises:
        InputError: at the start of the run, when the checkpoint is damaged or does not fit, naming the object.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any],
        sampler: EpochSampler | None = None,
        lr_scheduler: Any = None,
        resume: bool = True,
        averages: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.objects, self.resume = Path(path), dict(objects), resume
        self.averages = dict(averages or {})
        self.sampler, self.lr_scheduler = sampler, lr_scheduler
        if lr_scheduler is not None:
            self.objects["lr_scheduler"] = lr_scheduler

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self._tell_epoch)
        if self.lr_scheduler is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.lr_scheduler.step())

    def attach_saving(self, engine: Engine) -> None:
        """Save at the end of each epoch; attached on its own so that it can come after validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    @property
    def saving(self) -> SavesState:
        """A handler that attaches the saving; the last of a trainer's."""
        return SavesState(self)

    def _tell_epoch(self, engine: Engine) -> None:
        if self.sampler is not None:
            self.sampler.set_epoch(engine.state.epoch)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint."""
        if _rank():
            return
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        state["place"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        state["random"] = random_state()
        with atomic_write(self.path) as file:
            torch.save(state, file)

    def _begin(self, engine: Engine) -> None:
        if self.resume and self.path.exists() and engine.state.iteration == 0:
            self.restore(engine)
        else:
            for average, network in self.averages.items():
                self.objects[average].load_state_dict(self.objects[network].state_dict())

    def restore(self, engine: Engine) -> None:
        """Continue from the checkpoint."""
        try:
            damage = archive_damage(self.path)
            state: Any = None if damage else torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._unreadable(type(error).__name__) from error
        if damage:  # a tensor of zeros would be read without a word
            raise self._unreadable(damage)
        self._check(state, engine)
        for name, thing in self.objects.items():
            try:
                thing.load_state_dict(state[name])
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise self._misfit(f"this run's {name} ({reason})") from error
        engine.state.epoch = state["place"]["epoch"]
        engine.state.iteration = state["place"]["iteration"]
        set_random_state(state["random"])
        if _rank():  # the random states saved are those of the first process; noise must differ between processes
            torch.manual_seed(key_seed(_rank(), "resumed", engine.state.epoch))

    def _unreadable(self, reason: str) -> InputError:
        remedy = "Move it elsewhere to start anew"
        return InputError(f"is no readable checkpoint ({reason})", path=self.path, remedy=remedy)

    def _check(self, state: Any, engine: Engine) -> None:
        missing = [
            name for name in (*self.objects, "place", "random") if not isinstance(state, dict) or name not in state
        ]
        if missing:
            raise self._misfit(f"this run: it holds no {missing[0]}")
        epoch, iteration = state["place"]["epoch"], state["place"]["iteration"]
        length = engine.state.epoch_length
        if length is not None and iteration != epoch * length:
            raise self._misfit(f"this run: its epochs have {iteration / epoch:g} iterations instead of {length}")

    def _misfit(self, what: str) -> InputError:
        remedy = "Give the run another output folder, or move this file elsewhere"
        return InputError(f"does not fit {what}", path=self.path, remedy=remedy)


class SavesState:
    """Writes the checkpoint of a :class:`TrainingState` at the end of each epoch."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, behind the handlers whose work belongs into the checkpoint."""
        self.state.attach_saving(engine)


def _rank() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


def random_state() -> dict[str, Any]:
    """States of the global generators of torch (every device), numpy and Python, in plain types."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(algorithm), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, device)
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


class Watches:
    """Attaches :class:`BestWeights` to the evaluator when the trainer starts; at its end the last weights are kept."""

    def __init__(self, weights: BestWeights, evaluator: Engine) -> None:
        self.weights, self.evaluator = weights, evaluator

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._watch)
        engine.add_event_handler(Events.COMPLETED, self.weights.keep_last)

    def _watch(self) -> None:
        if not self.evaluator.has_event_handler(self.weights.update, Events.COMPLETED):  # a trainer may start again
            self.weights.attach(self.evaluator)


class BestWeights:
    """Keeps the weights with the best validation metric, and the last ones; attach to the evaluator.

    Args:
        model: whose state_dict is written (the EMA model).
        path: of the best weights; the last go beside them as ``<name>_last``.
        metric: name in ``engine.state.metrics``; larger is better.
        description: written into the files, which are model files then; without, they are plain state_dicts.

    Its own state (the best value) belongs into the checkpoint, so that a resumed run does not forget it. Resumed beside
    files of another description, it raises InputError: a network that fits would go on with another target.
    """

    def __init__(
        self, model: torch.nn.Module, path: str | Path, metric: str, description: ModelDescription | None = None
    ) -> None:
        self.model, self.path, self.metric, self.description = model, Path(path), metric, description
        self.best = float("-inf")

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.update)

    def watching(self, evaluator: Engine) -> Watches:
        """A handler of the trainer, so that an evaluator that runs without one keeps nothing."""
        return Watches(self, evaluator)

    def update(self, engine: Engine) -> None:
        """Write the last weights, and the best when they are."""
        value = float(engine.state.metrics[self.metric])
        self.keep_last()
        if value > self.best:
            self.best = value
            self._write(self.path)

    def keep_last(self) -> None:
        """Write the last weights: at a validation, and at the end, which need not be one."""
        self._write(self._last)

    @property
    def _last(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_last{self.path.suffix}")

    def _write(self, path: Path) -> None:
        if self.description is None:
            save_weights(self.model, path)
        else:
            save_model(path, self.model, self.description)

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        if self.description is not None and self._last.is_file():
            check_continues(self._last, self.description)
        self.best = float(state["best"])
