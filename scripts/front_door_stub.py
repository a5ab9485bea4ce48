"""Writes cgdpm_med/__init__.pyi from the front door's list of names: python scripts/front_door_stub.py"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cgdpm_med

STUB = Path(__file__).resolve().parents[1] / "cgdpm_med" / "__init__.pyi"
HEAD = '"""The front door for type checkers, which cannot follow lazy imports; a test compares the two lists."""'


def stub_text(exports: dict[str, str]) -> str:
    """One import for each module, names and modules sorted."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, module in exports.items():
        names[module].append(name)
    lines = [
        f"from cgdpm_med.{module} import {', '.join(f'{name} as {name}' for name in sorted(names[module]))}"
        for module in sorted(names)
    ]
    return "\n".join([HEAD, "", *lines, "", "__version__: str", "__all__: list[str]", ""])


if __name__ == "__main__":
    STUB.write_text(stub_text(vars(cgdpm_med)["_EXPORTS"]), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(STUB)], check=True)
