"""What workers of a cluster do in tests: stubs that end their worker, and runs of studies by an engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scans import PLAIN
from stubs import Thresholder

from cgdpm_med import Volume, find_cases
from cgdpm_med.apps.pipeline import segment_with
from cgdpm_med.apps.study_run import StudyWork, build_model
from cgdpm_med.files import InputError
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.runtime.engines import Answer, Engine, Item, Progress


@dataclass(frozen=True)
class Deadly:
    """Makes a stub that ends its process at certain studies, and a library's error at others.

    Attributes:
        log: folder in which each attempt leaves a file.
        at: by study, how many processes it ends before it goes well.
        broken: studies at which something unforeseen is raised.
    """

    log: Path
    at: tuple[tuple[str, int], ...] = ()
    broken: tuple[str, ...] = ()

    def __call__(self) -> Segmenter:
        return _Deadly(self)


class _Deadly(Thresholder):
    def __init__(self, orders: Deadly) -> None:
        super().__init__()
        self.orders = orders

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        attempt = self.orders.log / f"{key}.{os.getpid()}"
        attempt.parent.mkdir(parents=True, exist_ok=True)
        attempt.touch()
        if len(attempts(self.orders.log, key)) <= dict(self.orders.at).get(key, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if key in self.orders.broken:
            raise RuntimeError("nobody foresaw this")
        return super().__call__(volume, key, progress)


class Unlucky:
    """An engine that loses its worker at certain items, counted from 0.

    Args:
        log: folder in which each attempt leaves a file.
        deaths: how many workers an item costs.
    """

    def __init__(self, engine: Engine, log: Path, deaths: dict[int, int]) -> None:
        self.once, self.ask = engine.once, engine.ask
        self.engine, self.log, self.deaths = engine, log, deaths

    def do(
        self, work: Callable[[Item, Progress], Answer], items: Mapping[str, Item], progress: Progress
    ) -> Iterator[tuple[str, Answer | InputError]]:
        numbered = {key: (number, item) for number, (key, item) in enumerate(items.items())}
        return self.engine.do(_Mortal(work, self.log, self.deaths), numbered, progress)


@dataclass(frozen=True)
class _Mortal:
    work: Callable[[Any, Progress], Any]
    log: Path
    deaths: dict[int, int]

    def __call__(self, numbered: tuple[int, Any], progress: Progress) -> Any:
        number, item = numbered
        self.log.mkdir(parents=True, exist_ok=True)
        (self.log / f"{number}.{os.getpid()}").touch()
        if len(attempts(self.log, str(number))) <= self.deaths.get(number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work(item, progress)


def attempts(log: Path, key: str) -> list[Path]:
    """A file for each process that began a study."""
    return list(log.glob(f"{key}.*"))


def run_with(engine: Engine, source: Path, out: Path, build: Callable[[], Any], resume: bool = False) -> dict[str, Any]:
    """What ``segment`` does with a segmenter that workers build."""
    model = engine.once(partial(build_model, build, PLAIN))
    return segment_with(engine, StudyWork(model, out, PLAIN, resume), find_cases(source))
