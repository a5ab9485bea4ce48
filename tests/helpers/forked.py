"""Programs in processes of their own that share their imports, which take longer than a small training."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

PRELOADED = ["monai.bundle", "monai.engines", "monai.handlers", "cgdpm_med.training.engines", "cgdpm_med.data"]


class Forked:
    """``python -m MODULE ARGUMENTS`` on the CPU, with one thread.

    Args:
        log: file for what it prints.
    """

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        fork = multiprocessing.get_context("forkserver")
        fork.set_forkserver_preload(PRELOADED)
        self.log = log
        self.process = fork.Process(target=_run, args=(module, arguments, str(log)))
        self.process.start()

    def exit_code(self) -> int | None:
        """Once it has ended; negative for a signal."""
        self.process.join(300)
        return self.process.exitcode

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]


def _run(module: str, arguments: list[str], log: str) -> None:
    import torch

    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
