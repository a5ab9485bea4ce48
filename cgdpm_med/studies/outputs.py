"""What is written for an image: maps on its own grid, a JSON that says what made them, label tables for viewers."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgdpm_med import __version__
from cgdpm_med.data.transforms import case_name
from cgdpm_med.diffusion.ensemble import entropy
from cgdpm_med.diffusion.sampling import BEFORE_DIALS
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.models.weights import digests_by_name, sha256_of
from cgdpm_med.studies.cases import Case
from cgdpm_med.studies.map_names import OUTPUTS
from cgdpm_med.volumes import Grid, Volume, read_labels, read_volume, slice_order, write_on_grid

WRITTEN = ("mask", "entropy", "disagreement")
"""What is written unless asked otherwise."""

SCALAR = ("mask", "entropy", "disagreement")
"""Have one value a voxel, so that those of a cine are one file."""


def check_outputs(write: str | Sequence[str]) -> tuple[str, ...]:
    """The names of ``write``, or the one name it is. Raises InputError when an output is unknown."""
    names = (write,) if isinstance(write, str) else tuple(write)
    unknown = sorted(set(names) - set(OUTPUTS))
    if unknown:
        raise InputError(f"there is no output {unknown[0]!r}", remedy=f"Choose among {', '.join(OUTPUTS)}")
    return names


def map_file(folder: Path, name: str, output: str) -> Path:
    """The mask is ``<name>.nii.gz``, everything else ``<name>_<output>.nii.gz``."""
    return folder / f"{name}{'' if output == 'mask' else f'_{output}'}.nii.gz"


def save_maps(segmentation: Segmentation, folder: Path, name: str, write: Sequence[str]) -> list[Path]:
    """Write the chosen outputs of one volume; several channels are the last axis."""
    return [_save(getattr(segmentation, o), segmentation.grid, map_file(folder, name, o)) for o in write]


def _save(array: NDArray[Any], grid: Grid, path: Path) -> Path:
    channels_last = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    write_on_grid(channels_last, grid, path, dtype=array.dtype)
    return path


def save_segmentation(
    segmentation: Segmentation, folder: str | Path, write: str | Sequence[str] = WRITTEN
) -> list[Path]:
    """Write the chosen outputs as NIfTI on the input's grid, and last a JSON beside them; returns the files.

    The files bear the name of the input.

    Raises:
        InputError: for an unknown output.
    """
    folder, chosen = Path(folder), check_outputs(write)
    name = case_name(segmentation.volume.path)
    maps = save_maps(segmentation, folder, name, chosen)
    return [*maps, write_json(describe(segmentation), folder / f"{name}.json")]


def read_ensemble(mask: Volume) -> Segmentation | None:
    """The ensemble of a mask that :func:`save_maps` wrote, or None where its probabilities or members are not there.

    Raises:
        InputError: for files that are damaged, or of another shape.
    """
    folder, name = mask.path.parent, case_name(mask.path)
    files = {output: map_file(folder, name, output) for output in ("probabilities", "members")}
    if mask.data.ndim != 3 or not all(path.is_file() for path in files.values()):
        return None
    spacing = mask.grid.spacing  # of the same header, settled already
    probabilities = np.moveaxis(read_volume(files["probabilities"], spacing=spacing).data, -1, 0)
    members = read_labels(files["members"], allowed=range(len(probabilities)), spacing=spacing).data
    members = members[None] if members.ndim == 3 else np.moveaxis(members, -1, 0)
    for array, path in ((probabilities, files["probabilities"]), (members, files["members"])):
        if array.shape[1:] != mask.data.shape:
            what = f"has the shape {array.shape[1:]}, its mask {mask.data.shape}"
            raise InputError(what, path=path, remedy="Segment the image again")
    record = _record(folder / f"{name}.json")
    names = record.get("labels")
    votes = np.stack([np.count_nonzero(members == label, axis=0) for label in range(len(probabilities))])
    return Segmentation(
        key=name,
        mask=mask.data,
        probabilities=probabilities,
        entropy=entropy(torch.from_numpy(np.ascontiguousarray(probabilities))).numpy(),
        disagreement=(1 - votes.max(axis=0) / len(members)).astype(np.float32),
        members=members,
        volume=mask,
        temperature=record.get("temperature"),
        doubt=record.get("doubt", 0.0),
        channel_names=names if isinstance(names, dict) else None,
    )


def _record(path: Path) -> dict[str, Any]:
    """What :func:`describe` wrote; {} where it is not there, or is anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_json(value: Mapping[str, Any], path: Path) -> Path:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2).encode())
    return path


def describe(segmentation: Segmentation) -> dict[str, Any]:
    """What the JSON of a volume says: geometry, volumes in ml by label, uncertainty."""
    labels = range(1, segmentation.probabilities.shape[0])
    foreground = segmentation.probabilities[1:].sum(axis=0) > 0.05
    doubt = float(segmentation.entropy[foreground].mean()) if foreground.any() else None
    removed = segmentation.removed_voxels
    return {
        "case": segmentation.key,
        "shape": list(segmentation.mask.shape),
        "spacing_mm": [round(float(s), 6) for s in segmentation.grid.spacing],
        "header_note": segmentation.grid.note,
        "slice_order": slice_order(segmentation.grid),
        "members": len(segmentation.members),
        "labels": {str(label): name for label, name in segmentation.labels.by_number.items()},
        "volume_ml": {str(label): round(segmentation.millilitres(label), 3) for label in labels},
        "member_volume_ml": {
            str(label): [round(ml, 3) for ml in segmentation.member_millilitres(label)] for label in labels
        },
        "mean_entropy_in_foreground": None if doubt is None else round(doubt, 6),
        "calibrated": segmentation.temperature is not None,
        "temperature": segmentation.temperature,
        "doubt": segmentation.doubt,
        **({} if removed is None else {"removed_voxels": {str(label): count for label, count in removed.items()}}),
    }


# --- a cine -----------------------------------------------------------------------------------------------------------


class CineMaps:
    """Takes the segmentations of a cine's frames in turn and writes the maps on the cine's own grid.

    Maps with one value a voxel become one four-dimensional file at the end. Probabilities and members, which have an
    axis of their own already, are written frame by frame, ``<name>_frame<number>_<output>.nii.gz``.

    Args:
        volume: the cine.
        write: names of :data:`~cgdpm_med.studies.map_names.OUTPUTS`.
    """

    def __init__(self, volume: Volume, folder: Path, name: str, write: Sequence[str]) -> None:
        self.grid, self.folder, self.name = volume.grid, folder, name
        self.by_frame = [output for output in write if output not in SCALAR]
        self.maps: dict[str, NDArray[Any]] = {
            output: np.zeros(volume.data.shape, np.uint8 if output == "mask" else np.float32)
            for output in write
            if output in SCALAR
        }
        self.files: list[Path] = []

    def add(self, frame: int, segmentation: Segmentation) -> None:
        """The frame with this number, counted from 1."""
        for output, array in self.maps.items():
            array[..., frame - 1] = getattr(segmentation, output)
        self.files += save_maps(segmentation, self.folder, f"{self.name}_frame{frame:03d}", self.by_frame)

    def save(self) -> list[Path]:
        """Write what was collected; returns all files of the cine."""
        for output, array in self.maps.items():
            path = map_file(self.folder, self.name, output)
            write_on_grid(array, self.grid, path, dtype=array.dtype)
            self.files.append(path)
        return self.files


# --- names and colours ------------------------------------------------------------------------------------------------


def label_tables(labels: Labels = DEFAULT_LABELS) -> dict[str, str]:
    """Names and colours of the labels by file name: a colour table for 3D Slicer, label descriptions for ITK-SNAP."""
    rows = [(label, name, *bytes.fromhex(labels.colour_of(label)[1:])) for label, name in labels.by_number.items()]
    slicer = ["# Color table file labels.ctbl", f"# {len(rows) + 1} values", "0 background 0 0 0 0"]
    # its columns are parted by spaces
    slicer += [f"{label} {'_'.join(name.split())} {r} {g} {b} 255" for label, name, r, g, b in rows]
    snap = ["# ITK-SnAP Label Description File", "# IDX -R- -G- -B- -A- VIS MSH LABEL", '0 0 0 0 0 0 0 "Clear Label"']
    snap += [f'{label} {r} {g} {b} 1 1 1 "{name.replace(chr(34), chr(39))}"' for label, name, r, g, b in rows]
    return {"labels.ctbl": "\n".join(slicer) + "\n", "labels.label": "\n".join(snap) + "\n"}


def write_label_tables(folder: Path, labels: Labels = DEFAULT_LABELS) -> list[Path]:
    """Write :func:`label_tables` into a folder."""
    files = []
    for name, text in label_tables(labels).items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
        files.append(folder / name)
    return files


@dataclass(frozen=True)
class Provenance:
    """What a result depends on besides its image: software, settings (with the seed), weights by file name and hash."""

    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    weights: Mapping[str, str]


def todays_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, perhaps an older one, under today's names, with what it could not say as it was then."""
    unsaid = {**BEFORE_DIALS, "start": None, "shared_noise": False, "one_body": False}
    # version 0.1 said "fusion" of how the members are combined
    return unsaid | {"combine" if name == "fusion" else name: value for name, value in settings.items()}


def provenance(settings: Mapping[str, Any], *weights: str | Path) -> Provenance:
    """The versions in use, the settings given, and the digest of each weights file by its name without the folder.

    Args:
        settings: for example what :func:`~cgdpm_med.inference.predictor.predictor_settings` returns.
    """
    versions = {"cgdpm_med": __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Provenance(versions, settings, digests_by_name([Path(path) for path in weights]))


def input_hashes(cases: Sequence[Case]) -> dict[str, str]:
    """SHA-256 of each input by its name; of a DICOM stack that of its files' hashes, since file names may be UIDs."""
    return {case.image.name: _input_hash(case.files) for case in cases}


def _input_hash(files: Sequence[Path]) -> str:
    hashes = [sha256_of(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
