#!/usr/bin/env python3
"""What Dask's engine itself costs: seconds a study with 1 to 4 workers, and the scheduler's memory for queued studies.

python scripts/load.py                                  # 200 studies, 10,000 in the queue
python scripts/load.py --studies 50 --workers 1 2 --queued 0

Studies are noise and the model is a stub that answers at once (scripts/stub_studies.py). "nothing" sends items to
workers that give them straight back: the engine alone. "studies" reads, writes and records besides. Times are of this
machine and of whatever else runs on it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stub_studies import StubModel, segment_by, write_studies

from cgdpm_med.apps.cluster import DaskEngine, open_cluster
from cgdpm_med.runtime.engines import InProcess


def give_back(item: str, progress: object) -> str:
    """No work at all."""
    return item


def wait(item: str, progress: object) -> str:
    """Work that keeps what stands behind it in the queue."""
    time.sleep(0.5)
    return item


def seconds_each(engine: DaskEngine, count: int) -> float:
    """Of items that are given back."""
    items = {f"item{n}": f"/archive/study{n:05d}.nii.gz" for n in range(count)}
    started = time.perf_counter()
    assert sum(1 for _ in engine.do(give_back, items, lambda key, fraction: None)) == count
    return (time.perf_counter() - started) / count


def memory() -> int:
    """Bytes of this process, in which the scheduler of local workers lives."""
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


def bytes_each(engine: DaskEngine, count: int) -> float:
    """Of memory for each queued file reference, the reference itself left out."""
    items = {f"item{n}": f"/archive/study{n:05d}.nii.gz" for n in range(count)}
    before = memory()
    with peak() as most:
        answers = engine.do(wait, items, lambda key, fraction: None)
        for _ in range(5):
            next(answers)
        answers.close()  # type: ignore[attr-defined]
    return (most[0] - before) / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--queued", type=int, default=10_000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_studies(folder / "in", wanted.studies)
        started = time.perf_counter()
        segment_by(InProcess(), source, folder / "alone", StubModel())
        print(f"one process: {1000 * (time.perf_counter() - started) / wanted.studies:.1f} ms a study")
        for workers in wanted.workers:
            with open_cluster(f"local:{workers}") as engine:
                seconds_each(engine, 4 * workers)  # imports
                nothing = seconds_each(engine, wanted.studies)
                segment_by(engine, source, folder / "warm", StubModel())
                started = time.perf_counter()
                segment_by(engine, source, folder / f"by{workers}", StubModel())
                each = (time.perf_counter() - started) / wanted.studies
                print(f"{workers} workers: nothing {1000 * nothing:.1f} ms, studies {1000 * each:.1f} ms each")
        if wanted.queued:
            with open_cluster("local:1") as engine:
                seconds_each(engine, 4)
                found = bytes_each(engine, wanted.queued)
                print(f"{wanted.queued} in the queue: {found:.0f} bytes each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
