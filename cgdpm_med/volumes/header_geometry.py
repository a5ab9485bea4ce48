"""What a NIfTI header says of the voxels' size and directions, where its parts contradict each other.

A header states lengths twice, in ``pixdim`` and in the columns of its sform, and directions up to twice, in sform and
qform. The rule that settles a conflict is told in :func:`~cgdpm_med.volumes.read_volume`; here it is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.volumes.spacing import (
    CONFLICT_TOLERANCE,
    GIVE_SPACING,
    Spacing,
    agree,
    check_spacing,
    in_mm,
    plausible,
)

Array = NDArray[np.float64]

CONFLICTS = frozenset({"pixdim", "the affine", "sform", "qform"})
"""The kinds of note that name a contradiction, by what was taken; the others are remarks."""

_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # xyzt_units & 7; all else means or is taken as mm
_TEMPLATES = (3, 4, 5)  # codes of Talairach, MNI and other templates: places in no patient
_REPAIR = "Set the wrong sform_code or qform_code to 0, or give --spacing pixdim (spacing= in Python): no directions"
_APART = 1.0  # degrees between the axes of sform and qform above which they are called in conflict


@dataclass(frozen=True, eq=False)
class HeaderGeometry:
    """Where the voxels lie, and what had to be settled for that.

    Attributes:
        spacing: (3,), true voxel size in mm.
        affine: (4, 4), the affine as stated with columns of length ``spacing``.
        stated: (4, 4), the affine that was chosen, in mm, as the header holds it.
        directions: whether that affine says where the axes point.
        notes: conflicts by kind, each with what was taken.
    """

    spacing: Array
    affine: Array
    stated: Array
    directions: bool
    notes: dict[str, str]


def header_geometry(header: nib.Nifti1Header, spacing: Spacing, path: Path) -> HeaderGeometry:
    """The geometry by the rule of :func:`~cgdpm_med.volumes.read_volume`.

    Raises:
        InputError: a spacing that is none of the choices, no plausible spacing, or no affine that can be used.
    """
    check_spacing(spacing)
    form, notes = _chosen_form(header)
    lengths = _Lengths(header, form, path)
    true, found = lengths.settled(spacing)
    notes |= found
    notes |= _remarks(form, true)
    scaled = form.affine.copy()
    if not np.allclose(true, form.lengths, rtol=1e-4, atol=0):
        scaled[:3, :3] = form.cosines * true
    directions = form.code > 0 and form.fault is None and not (form.nominal and not agree(true, np.ones(3)))
    return HeaderGeometry(true, scaled, form.affine, directions, notes)


# --- which affine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Form:
    """One of the affines a header may hold, in mm; ``fault`` says why it cannot be used."""

    name: str
    code: int
    affine: Array
    unit: float = 1.0
    fault: str | None = None

    @property
    def lengths(self) -> Array:
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def cosines(self) -> Array:
        return self.affine[:3, :3] / self.lengths

    @property
    def axis_aligned(self) -> bool:
        return bool((np.abs(self.cosines).max(axis=0) > 1 - 1e-6).all())

    @property
    def nominal(self) -> bool:
        """Whether it is what converters write who know nothing: ones, signs and zeros."""
        return self.axis_aligned and agree(self.lengths / self.unit, np.ones(3))

    def degrees_from(self, other: _Form) -> float:
        """The largest angle between an axis here and the same axis there."""
        cosines = np.clip((self.cosines * other.cosines).sum(axis=0), -1, 1)
        return float(np.degrees(np.arccos(cosines.min())))


def _chosen_form(header: nib.Nifti1Header) -> tuple[_Form, dict[str, str]]:
    """The affine to go by, with a note where another one says otherwise."""
    sform, qform = _forms(header)
    stated = [form for form in (sform, qform) if form.code > 0]
    usable = [form for form in stated if form.fault is None]
    if not usable:
        return _without_directions(header, stated[0].fault if stated else None), {}
    if len(usable) == 2:
        return _of_two(sform, qform, filled=_filled(header))
    if usable[0] is not stated[0]:
        return qform, {"qform": f"the sform {sform.fault}: the qform is taken"}
    return usable[0], {}


def _of_two(sform: _Form, qform: _Form, *, filled: bool) -> tuple[_Form, dict[str, str]]:
    """Where both can be used; ``filled`` says whether pixdim, on which the qform's lengths rest, was filled in."""
    apart = sform.degrees_from(qform)
    rescaled = ~np.isclose(sform.lengths, qform.lengths, rtol=CONFLICT_TOLERANCE, atol=0)
    if filled and sform.code in _TEMPLATES and (apart > _APART or rescaled.all()):
        return qform, {"qform": f"the sform leads into a template's space (code {sform.code}): the qform is taken"}
    if filled and sform.nominal and not qform.axis_aligned:
        return qform, {"qform": "the sform holds ones and zeros alone: the qform is taken"}
    if apart > _APART:
        return sform, {"sform": f"sform and qform differ by {apart:.0f} degrees: the sform is taken"}
    return sform, {}


def _forms(header: nib.Nifti1Header) -> tuple[_Form, _Form]:
    repaired, unit = _repaired(header), _unit(header)
    sform = _form("sform", int(header["sform_code"]), np.array(repaired.get_sform(), dtype=np.float64), unit)
    try:
        qform = _form("qform", int(header["qform_code"]), np.array(repaired.get_qform(), dtype=np.float64), unit)
    except ValueError as error:  # a quaternion longer than 1
        fault = f"has an impossible qform ({error})"
        qform = _Form("qform", int(header["qform_code"]), np.eye(4), unit, fault)
    return sform, qform


def _form(name: str, code: int, affine: Array, unit: float) -> _Form:
    affine = affine.copy()
    affine[:3] *= unit
    return _Form(name, code, affine, unit, _fault(affine))


def _fault(affine: Array) -> str | None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all()):
        return "has an affine that is not finite"
    if not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "has a singular affine"
    return None


def _without_directions(header: nib.Nifti1Header, fault: str | None) -> _Form:
    """The affine of pixdim alone, in the place of one that is absent or, with a spacing given by hand, of no use."""
    affine = np.array(_repaired(header).get_base_affine(), dtype=np.float64)
    affine[:3] *= _unit(header)
    return _Form("pixdim", 0, affine, _unit(header), fault)


def _repaired(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A copy from which nibabel can make affines, where pixdim may hold signs, zeros and no qfac."""
    repaired = header.copy()
    pixdim = np.abs(repaired["pixdim"][1:4])
    repaired["pixdim"][1:4] = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1)
    if repaired["pixdim"][0] not in (-1, 1):
        repaired["pixdim"][0] = 1  # nifti1.h: 0 means 1
    return repaired


def _unit(header: nib.Nifti1Header) -> float:
    return _UNITS.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))[1]


def _filled(header: nib.Nifti1Header) -> bool:
    """Whether pixdim holds three lengths that are not all ones."""
    pixdim = header["pixdim"][1:4].astype(np.float64)
    return bool(_usable(pixdim).all()) and not agree(np.abs(pixdim), np.ones(3))


# --- which lengths ----------------------------------------------------------------------------------------------------


class _Lengths:
    """pixdim against the columns of the chosen affine, both in mm."""

    def __init__(self, header: nib.Nifti1Header, form: _Form, path: Path) -> None:
        self.form, self.path = form, path
        self.pixdim = header["pixdim"][1:4].astype(np.float64) * _unit(header)
        self.units = int(header["xyzt_units"]) & 7

    def settled(self, spacing: Spacing) -> tuple[Array, dict[str, str]]:
        """The true spacing and a note where something was settled."""
        if not isinstance(spacing, str):
            return self._by_hand(np.array(spacing, dtype=np.float64))
        if spacing != "pixdim" and self.form.fault is not None:
            raise InputError(self.form.fault, path=self.path, remedy=_REPAIR)
        notes: dict[str, str] = {}
        if spacing == "pixdim" or self.form.name != "sform":
            true = self._of_pixdim()
        elif spacing == "affine":
            true = self.form.lengths
        else:
            true, notes = self._judged()
        if not plausible(true):
            unit = f" (its unit is {_UNITS[self.units][0]})" if self.units in _UNITS else ""
            raise self._error(f"has an implausible voxel spacing of {in_mm(true)}{unit}")
        return true, notes

    def _by_hand(self, given: Array) -> tuple[Array, dict[str, str]]:
        stated = self.form.lengths if self.form.name == "sform" else np.abs(self.pixdim)
        if agree(given, stated):
            return given, {}
        return given, {"by hand": f"a spacing of {in_mm(given)} was given, the header says {in_mm(stated)}"}

    def _of_pixdim(self) -> Array:
        if not _usable(self.pixdim).all():
            raise self._error(f"has no voxel spacing: pixdim is {in_mm(self.pixdim)}")
        return np.abs(self.pixdim)

    def _judged(self) -> tuple[Array, dict[str, str]]:
        """Which of the two to believe; each line of the rule is a line here."""
        size, lengths, usable = np.abs(self.pixdim), self.form.lengths, _usable(self.pixdim)
        conflict = ~usable | ~np.isclose(size, lengths, rtol=CONFLICT_TOLERANCE, atol=0)
        unit_column = np.isclose(lengths / self.form.unit, 1, rtol=CONFLICT_TOLERANCE, atol=0)
        unit_pixdim = np.isclose(size / self.form.unit, 1, rtol=CONFLICT_TOLERANCE, atol=0)
        if not conflict.any():
            return size, {}
        if unit_column.all():
            if not usable.all():
                raise self._error(f"has no voxel spacing: the affine is unit, pixdim is {in_mm(self.pixdim)}")
            return size, self._note("pixdim", "affine")
        if usable.any() and (conflict & unit_column).any():
            raise self._error(f"has an affine that was filled in for some axes only: {self._both()}")
        if self.form.code in _TEMPLATES and (conflict & usable & ~unit_pixdim).any():
            raise self._error(f"has an sform into a template's space (code {self.form.code}), and {self._both()}")
        if usable.all() and _thousandfold(lengths / size):
            raise self._error(f"has two units of length: {self._both()}")
        return lengths, self._note("the affine", "pixdim")

    def _note(self, taken: str, other: str) -> dict[str, str]:
        otherwise = f"if that is wrong, give --spacing {other}, or numbers such as 1.5,1.5,8 (spacing= in Python)"
        return {taken: f"{self._both()}: {taken} is taken; {otherwise}"}

    def _both(self) -> str:
        return f"pixdim says {in_mm(self.pixdim)}, the affine {in_mm(self.form.lengths)}"

    def _error(self, what: str) -> InputError:
        return InputError(what, path=self.path, remedy=GIVE_SPACING)


def _remarks(form: _Form, true: Array) -> dict[str, str]:
    """What is odd without being a conflict."""
    remarks = {}
    if form.fault is not None:
        remarks["no directions"] = f"the header {form.fault}: no directions are known"
    cosines = form.cosines
    skew = float(np.degrees(np.arcsin(min(1.0, np.abs(cosines.T @ cosines - np.eye(3)).max()))))
    if skew > 0.5:
        remarks["sheared"] = f"the affine is sheared by {skew:.1f} degrees"
    if form.axis_aligned and agree(form.lengths / form.unit, np.ones(3)) and (true == 1).all():
        remarks["ones"] = "1 x 1 x 1 mm is also what headers say that were never filled in"
    return remarks


# --- numbers ----------------------------------------------------------------------------------------------------------


def _usable(pixdim: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(pixdim) & (pixdim != 0))


def _thousandfold(ratio: Array) -> bool:
    """Whether one is the other in metres, millimetres or micrometres."""
    return any(agree(ratio, np.full(3, factor)) for factor in (1e-6, 1e-3, 1e3, 1e6))
