"""Large folders on several machines: which process takes which study, and what is finished already."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cgdpm_med.files import InputError
from cgdpm_med.report.records import made_with, read_record
from cgdpm_med.studies.cases import Case
from cgdpm_med.studies.outputs import input_hashes


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count``.

    A study belongs to a part by a hash of its key, and by nothing else: processes that list the folder at different
    times, with scans added or removed in between, still take each study exactly once. The price is parts of somewhat
    unequal size.
    """

    index: int
    count: int

    def takes(self, key: str) -> bool:
        """Whether the study with this key is this part's."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def find_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The part that ``text`` ("2/8") names, else the one that torchrun's RANK and WORLD_SIZE name; None for the whole.

    Raises:
        InputError: for anything that is not i/n with 1 <= i <= n.
    """
    if text is not None:
        first, slash, last = text.partition("/")
        shard = Shard(int(first), int(last)) if slash and first.isdecimal() and last.isdecimal() else None
        if shard is None or not 1 <= shard.index <= shard.count:
            raise InputError(f"{text!r} is no part of a whole", remedy="Give --shard i/n with 1 <= i <= n, such as 2/8")
        return shard if shard.count > 1 else None
    rank, size = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None or size is None:
        return None
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise InputError(f"RANK is {rank!r} and WORLD_SIZE {size!r}", remedy="Unset them, or give --shard i/n")
    return Shard(int(rank) + 1, int(size)) if int(size) > 1 else None


# --- what is finished -------------------------------------------------------------------------------------------------


def finished(path: Path, about: Mapping[str, Any], inputs: Sequence[Case]) -> dict[str, Any] | None:
    """The record at ``path`` when the study is complete: every file there and readable, made alike from equal inputs.

    Args:
        path: the study's JSON, which is written last.
        about: what the record must say of settings, versions, weights and the patient.
        inputs: the images.
    """
    record = read_record(path)
    if record is not None:
        record["made_with"] = made_with(record)
    plain = json.loads(json.dumps(about))
    if record is None or any(record.get(name) != value for name, value in plain.items()):
        return None
    try:
        same = record["inputs"] == input_hashes(inputs)
        return record if same and all(_readable(path.parent / name) for name in record["files"]) else None
    except (OSError, KeyError, TypeError):
        return None


def _readable(path: Path) -> bool:
    if not path.name.endswith(".nii.gz"):
        return path.is_file() and path.stat().st_size > 0
    try:
        np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    except Exception:  # nibabel, gzip and zlib each have their own
        return False
    return True
