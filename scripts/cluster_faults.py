#!/usr/bin/env python3
"""Workers of Dask killed while they segment: is every study complete once, with the files of an undisturbed run?

python scripts/cluster_faults.py                             # 200 studies, 2 workers, 10 of them killed
python scripts/cluster_faults.py --studies 20 --kills 2      # what the test does

Studies are noise and the model is a stub (scripts/stub_studies.py): the engine is tried, no network. Ends with exit
code 1 where a study is missing, was done wrongly or failed, or where fewer workers were killed than wanted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from stub_studies import StubModel, segment_by, write_studies

from cgdpm_med.apps.cluster import open_cluster
from cgdpm_med.runtime.engines import Engine, InProcess


def contents(folder: Path) -> dict[str, bytes]:
    """Files by their path below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killer(threading.Thread):
    """Kills a process that worked lately, at random, each time so many studies more are complete."""

    def __init__(self, out: Path, log: Path, kills: int, apart: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.log, self.kills, self.apart = out, log, kills, apart
        self.random, self.killed, self.over = random.Random(seed), 0, False

    def run(self) -> None:
        while self.killed < self.kills and not self.over:
            done = len(list(self.out.glob("*.json")))
            if done >= self.apart * (self.killed + 1) and self._kill():
                self.killed += 1
            time.sleep(0.02)

    def _kill(self) -> bool:
        alive = [int(path.name) for path in self.log.iterdir() if Path(f"/proc/{path.name}").exists()]
        if not alive:
            return False
        victim = self.random.choice(sorted(alive))
        (self.log / str(victim)).unlink(missing_ok=True)
        os.kill(victim, signal.SIGKILL)
        return True


def trial(engine: Engine, folder: Path, studies: int, kills: int, seed: int) -> dict[str, Any]:
    """How many studies were done, failed and differ, and how many workers of a cluster on this machine were killed."""
    source = write_studies(folder / "in", studies)
    log = folder / "log"
    log.mkdir()
    segment_by(InProcess(), source, folder / "alone", StubModel())
    killer = Killer(folder / "out", log, kills, max(1, studies // (kills + 2)), seed)
    killer.start()
    result = segment_by(engine, source, folder / "out", StubModel(seconds=0.1, log=log))
    killer.over = True
    killer.join()
    alone, together = contents(folder / "alone"), contents(folder / "out")
    differing = [name for name in alone.keys() | together.keys() if alone.get(name) != together.get(name)]
    done = [case["case"] for case in result["cases"]]
    return {
        "studies": studies,
        "killed": killer.killed,
        "done": len(done),
        "twice": len(done) - len(set(done)),
        "failed": len(result["failed"]),
        "differing_files": len(differing),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_cluster(f"local:{wanted.workers}") as engine:
        found = trial(engine, Path(folder), wanted.studies, wanted.kills, wanted.seed)
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    expected = {"studies": wanted.studies, "killed": wanted.kills, "done": wanted.studies}
    return int(found != {**expected, "twice": 0, "failed": 0, "differing_files": 0})


if __name__ == "__main__":
    sys.exit(main())
