"""Runs of ``segment`` that are compared, continued, or started as processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scans import PLAIN
from stubs import Thresholder

from cgdpm_med import Options, find_cases, segment_all
from cgdpm_med.apps import cli


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def again(source: Path, out: Path, options: Options = PLAIN, **settings: object) -> list[str]:
    """Keys segmented by a run with ``--continue``."""
    segmenter = Thresholder(**settings)
    segment_all(segmenter, find_cases(source), out, options=options, resume=True)
    return segmenter.seen


def start(log: Path, *arguments: str) -> int:
    """Run the command in a child, which shares this process's imports; returns its process id."""
    if child := os.fork():
        return child
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    sys.argv = ["cgdpm-med", "segment", *arguments, "--no-report", "--device", "cpu"]
    code = 99
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)
