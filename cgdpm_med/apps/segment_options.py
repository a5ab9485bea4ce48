"""What ``cgdpm-med segment`` does with an ensemble, as one value, and whether that fits the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgdpm_med.apps.dicom_seg import Identity, check_dicom_seg
from cgdpm_med.data.acdc import BODY, body_complaint
from cgdpm_med.files import InputError
from cgdpm_med.studies.cases import Case, Subject, group_studies
from cgdpm_med.studies.outputs import WRITTEN, Provenance
from cgdpm_med.volumes import Spacing, Volume, check_spacing


@dataclass(frozen=True)
class Options:
    """What is done with the ensembles.

    Attributes:
        write: names of :data:`~cgdpm_med.studies.map_names.OUTPUTS`, or one of them.
        staple: whether STAPLE combines the members' masks, in place of what the bundle says.
        keep_largest: whether every structure of the combined mask is reduced to its largest piece.
        ed, es: frame numbers of a cine, from 1; by default the largest and the smallest left ventricle. ``es`` is of a
            single study.
        height, weight: in cm and kg, of a single patient.
        pages: whether each study gets an HTML page.
        dicom_seg: whether DICOM inputs get DICOM segmentations, "deidentified" or "identified"; None writes none.
        calibrate: whether the calibration beside the weights is applied, where there is one that fits.
        calibration: a file to use in its place.
        spacing: of every input, see :func:`~cgdpm_med.read_volume`.
        flip_slices: whether the slices of every input run the other way than its header says, or, where it says
            nothing, from apex to base.
    """

    write: str | Sequence[str] = WRITTEN
    staple: bool = False
    keep_largest: bool = False
    ed: int | None = None
    es: int | None = None
    height: float | None = None
    weight: float | None = None
    pages: bool = True
    dicom_seg: Identity | None = None
    calibrate: bool = True
    calibration: Path | None = None
    spacing: Spacing = "auto"
    flip_slices: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.write, str):
            object.__setattr__(self, "write", (self.write,))

    def on_top_of(self, origin: Provenance | None) -> Provenance:
        """How a mask was made, given how its ensemble was."""
        origin = origin or Provenance({}, {}, {})
        combining = {"staple": self.staple, "keep_largest": self.keep_largest}
        return replace(origin, settings={**origin.settings, **combining, **self.geometry()})

    def geometry(self) -> dict[str, Any]:
        """What the user said of where voxels lie, in plain JSON."""
        spacing = self.spacing if isinstance(self.spacing, str) else [float(size) for size in self.spacing]
        return {"spacing": spacing, "flip_slices": self.flip_slices}

    def read(self, case: Case) -> Volume:
        """The image of a case with the geometry the user gave."""
        volume = case.read(self.spacing)
        return replace(volume, grid=replace(volume.grid, flip_slices=self.flip_slices))

    def subject(self, known: Subject) -> Subject:
        """``known`` with what these options say of it."""
        given = {name: getattr(self, name) for name in ("ed", "es", "height", "weight")}
        return replace(known, **{name: value for name, value in given.items() if value is not None})


def check_options(options: Options, cases: Sequence[Case]) -> None:
    """Raises InputError for options that do not fit together, or not to these cases."""
    check_spacing(options.spacing)
    if options.dicom_seg is not None:
        check_dicom_seg(options.dicom_seg)
        if all(case.stack is None and case.error is None for case in cases):
            raise InputError("there is no DICOM series to make a DICOM SEG of", remedy="Leave out --dicom-seg")
    studies = group_studies(cases)
    for name, number in (("--ed", options.ed), ("--es", options.es)):
        if number is not None and any(case.subject is not None for case in cases):
            what = (
                f"{name} names a frame of a cine, but here Info.cfg says which frames are which, or the files' names do"
            )
            raise InputError(what, remedy=f"Leave out {name}, or give the 4D file alone")
    if options.ed is not None and options.ed == options.es:
        raise InputError(
            f"ED and ES are the same frame, {options.ed}",
            remedy="Give two different frames, or leave out --ed and --es",
        )
    if options.es is not None and len(studies) > 1:
        what = f"one --es cannot be that of {len(studies)} studies"
        raise InputError(what, remedy="Leave out --es, or segment one study at a time")
    for name, given in (("Height", options.height), ("Weight", options.weight)):
        if given is not None and (complaint := body_complaint(name, given)):
            raise InputError(complaint, remedy=f"Give --{name.lower()} in {BODY[name][2]}")
    if (options.height is None) != (options.weight is None):
        raise InputError("body surface needs both height and weight", remedy="Give --height and --weight")
    if options.height is not None and len(studies) > 1:
        remedy = "Segment one patient at a time, or use ACDC's layout, where Info.cfg states them"
        raise InputError(f"one height and weight cannot be those of {len(studies)} studies", remedy=remedy)
