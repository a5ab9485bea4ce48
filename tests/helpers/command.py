"""The command line, called in this process."""

from __future__ import annotations

import pytest

from cgdpm_med.apps import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ``cgdpm-med`` with these arguments."""
    monkeypatch.setattr("sys.argv", ["cgdpm-med", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return 0 if stop.value.code is None else int(stop.value.code)
