#!/usr/bin/env python3
"""What Dask's engine itself costs, and what two workers win with the real model.

python scripts/load.py                                  # 200 studies by 1 to 4 workers, 10,000 in the queue
python scripts/load.py --studies 50 --workers 1 2 --queued 0
python scripts/load.py --real 12                        # the shipped model by 1 and by 2 workers; nothing else may run

Without --real, studies are noise and the model is a stub that answers at once (scripts/stub_studies.py). "nothing"
sends items to workers that give them straight back: the engine alone. "studies" reads, writes and records besides; its
overhead is what that takes more than in one process. CPU time is that of all processes together, whatever else runs on
the machine. Ends with exit code 1 where a target is missed. --output FILE keeps the numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster_faults import contents
from stub_studies import PLAIN, StubModel, segment_by, write_studies

from cgdpm_med import find_cases
from cgdpm_med.apps.cluster import DaskEngine, open_cluster
from cgdpm_med.apps.pipeline import segment_with
from cgdpm_med.apps.study_run import StudyWork, build_model
from cgdpm_med.inference.segmenter import load_segmenter
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.runtime.engines import Engine, InProcess

OVERHEAD_MS, QUEUED_BYTES, GAIN = 50.0, 1000.0, 1.8


@dataclass(frozen=True)
class Number:
    """A measured number with the target it is held against, if any."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def missed(self) -> bool:
        above = self.at_most is not None and self.value > self.at_most
        return above or (self.at_least is not None and self.value < self.at_least)

    def __str__(self) -> str:
        wanted = f", at most {self.at_most:g}" if self.at_most is not None else ""
        wanted += f", at least {self.at_least:g}" if self.at_least is not None else ""
        return f"{self.name}: {self.value:.4g} {self.unit}{wanted}{' MISSED' if self.missed else ''}"


# --- what is measured -------------------------------------------------------------------------------------------------


def spent(engine: Engine) -> float:
    """CPU seconds of this process, in which scheduler and nannies live, and of the workers."""
    workers = engine.client.run(time.process_time).values() if isinstance(engine, DaskEngine) else ()
    return time.process_time() + sum(workers)


def milliseconds_each(engine: Engine, work: Callable[[], object], count: int) -> tuple[float, float]:
    """CPU time and wall time of each of so many pieces."""
    cpu, wall = spent(engine), time.perf_counter()
    work()
    return 1000 * (spent(engine) - cpu) / count, 1000 * (time.perf_counter() - wall) / count


def memory() -> int:
    """Bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def peak() -> Iterator[list[int]]:
    """The largest memory meanwhile, as the only number of the list."""
    found, over = [memory()], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            found[0] = max(found[0], memory())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


# --- the engine alone -------------------------------------------------------------------------------------------------


def give_back(item: str, progress: object) -> str:
    """No work at all."""
    return item


def wait(item: str, progress: object) -> str:
    """Work that keeps what stands behind it in the queue."""
    time.sleep(0.5)
    return item


def references(count: int) -> dict[str, str]:
    return {f"item{n}": f"/archive/study{n:05d}.nii.gz" for n in range(count)}


def give_all_back(engine: DaskEngine, items: dict[str, str]) -> None:
    assert sum(1 for _ in engine.do(give_back, items, lambda key, fraction: None)) == len(items)


def bytes_queued(engine: DaskEngine, count: int) -> float:
    """Of memory for each queued file reference, the reference itself left out."""
    items, before = references(count), memory()
    with peak() as most:
        answers = engine.do(wait, items, lambda key, fraction: None)
        for _ in range(5):
            next(answers)
        answers.close()  # type: ignore[attr-defined]
    return (most[0] - before) / count


def overheads(folder: Path, studies: int, workers: Sequence[int], queued: int) -> Iterator[Number]:
    source = write_studies(folder / "in", studies)
    few = write_studies(folder / "few", 2 * max(workers))
    alone = InProcess()
    segment_by(alone, few, folder / "warm", StubModel())
    base, _ = milliseconds_each(alone, partial(segment_by, alone, source, folder / "alone", StubModel()), studies)
    yield Number("one process, studies, CPU", base, "ms each")
    for count in workers:
        with open_cluster(f"local:{count}") as engine:
            give_all_back(engine, references(4 * count))  # imports
            nothing, latency = milliseconds_each(engine, partial(give_all_back, engine, references(studies)), studies)
            yield Number(f"{count} workers, nothing, CPU", nothing, "ms each", at_most=OVERHEAD_MS)
            yield Number(f"{count} workers, nothing, wall", latency, "ms each")
            segment_by(engine, few, folder / f"warm{count}", StubModel())
            run = partial(segment_by, engine, source, folder / f"by{count}", StubModel())
            cpu, wall = milliseconds_each(engine, run, studies)
            yield Number(f"{count} workers, studies, CPU beyond one process", cpu - base, "ms each", OVERHEAD_MS)
            yield Number(f"{count} workers, studies, wall", wall, "ms each")
    if queued:
        with open_cluster("local:1") as engine:
            give_all_back(engine, references(4))
            yield Number(f"{queued} in the queue", bytes_queued(engine, queued), "bytes each", at_most=QUEUED_BYTES)
            before = memory()
            give_all_back(engine, references(studies))
            yield Number("left by what is done", (memory() - before) / studies, "bytes each")


# --- the real model ---------------------------------------------------------------------------------------------------


def gain(folder: Path, studies: int, members: int) -> Iterator[Number]:
    """Studies an hour by 1, 2 and again 1 workers, each of one thread, models loaded before."""
    os.environ["OMP_NUM_THREADS"] = "1"
    size: dict[str, Any] = {"shape": (96, 84, 6), "spacing": (1.9, 1.9, 15.0), "num_frames": 6}
    write_phantom_dataset(folder / "in", patients=list(range(901, 901 + studies)), **size)
    build = partial(build_model, partial(load_segmenter, "acdc_segmentation", "cpu", {"members": members}), PLAIN)
    cases = find_cases(folder / "in")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn, count in enumerate((1, 2, 1)):
        with open_cluster(f"local:{count}") as engine:
            model = engine.once(build)
            out = folder / f"{turn}by{count}"
            segment_with(engine, StudyWork(model, folder / f"warm{turn}", PLAIN), cases[: 4 * count])  # 2 cases a study
            started = time.perf_counter()
            segment_with(engine, StudyWork(model, out, PLAIN), cases)
            rates[count].append(3600 * studies / (time.perf_counter() - started))
            yield Number(f"{count} workers, turn {turn + 1}", rates[count][-1], "studies an hour")
    differing = len(set(contents(folder / "0by1").items()) ^ set(contents(folder / "1by2").items()))
    yield Number("files that differ between 1 and 2 workers", differing, "", at_most=0)
    yield Number("2 workers / 1 worker", 2 * rates[2][0] / sum(rates[1]), "x", at_least=GAIN)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--real", type=int, metavar="STUDIES", help="measure the real model with so many studies")
    parser.add_argument("--members", type=int, default=4, help="of the real model")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    wanted = parser.parse_args()
    found: list[Number] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = (
            gain(folder, wanted.real, wanted.members)
            if wanted.real
            else overheads(folder, wanted.studies, wanted.workers, wanted.queued)
        )
        for number in numbers:
            print(number, flush=True)
            found.append(number)
    if wanted.output:
        settings = {name: value for name, value in vars(wanted).items() if name != "output"}
        told = [vars(number) | {"missed": number.missed} for number in found]
        wanted.output.write_text(json.dumps({"settings": settings, "numbers": told}, indent=1) + "\n", encoding="utf-8")
    return int(any(number.missed for number in found))


if __name__ == "__main__":
    sys.exit(main())
