"""One patient's frames together: end-diastole and end-systole, function, quality; flat in memory over a cine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError, listed
from cgdpm_med.heart.checks import assess_function, assess_heart, compare_phases
from cgdpm_med.heart.function import (
    CardiacFunction,
    FrameVolumes,
    cardiac_function,
    find_ed_es,
    frame_volumes,
    write_cohort_csv,
)
from cgdpm_med.heart.single_images import single_image_columns
from cgdpm_med.heart.stack_checks import assess_stack, compare_grids
from cgdpm_med.inference.labels import ACDC, Labels
from cgdpm_med.inference.quality import Finding, Quality, QualityLimits, assess_frame, combine
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.volumes import slice_order

_LV = 3


@dataclass(frozen=True)
class StudyResult:
    """What is known of a study, without its voxels.

    Attributes:
        key: of the study.
        volumes: of every frame, by its number.
        quality: the checks.
        ed, es: frame numbers, or None where there is one frame or the two cannot be told apart.
        function: None in the same cases.
        labels: the structures. Of others than ACDC's there are neither ED and ES nor function.
    """

    key: str
    volumes: Mapping[int, FrameVolumes]
    quality: Quality
    ed: int | None = None
    es: int | None = None
    function: CardiacFunction | None = None
    labels: Labels = ACDC


class Study:
    """Takes the segmentations of one patient's frames, in the order of their numbers, and keeps only two of them.

    Of structures other than ACDC's it keeps the frames that were named, else the first, and checks every frame.

    Args:
        key: of the study in tables and reports; choose one that names nobody.
        ed, es: frame numbers where they are known; otherwise the largest and the smallest left ventricle.
        height, weight: in cm and kg, for indexing.
        level, widening, margin: of the intervals, see :func:`~cgdpm_med.heart.function.cardiac_function`. The checks
        judge the
            members' own spread whatever these are.
        limits: of the checks.
    """

    def __init__(
        self,
        key: str,
        *,
        ed: int | None = None,
        es: int | None = None,
        height: float | None = None,
        weight: float | None = None,
        level: float = 0.9,
        widening: float | Mapping[str, float] = 1.0,
        margin: Mapping[str, float] | None = None,
        limits: QualityLimits | None = None,
    ) -> None:
        self.key, self.ed, self.es = key, ed, es
        self.height, self.weight = height, weight
        self.level, self.widening, self.margin = level, widening, margin
        self.limits = limits or QualityLimits()
        self._volumes: dict[int, FrameVolumes] = {}
        self._kept: dict[int, Segmentation] = {}
        self._labels = ACDC
        self._checked: list[Quality] = []

    def add(self, frame: int, segmentation: Segmentation) -> None:
        """Count a frame; its segmentation is kept as long as it may be end-diastole or end-systole.

        Raises:
            InputError: for a frame given twice.
        """
        if frame in self._volumes:
            raise InputError(f"frame {frame} of {self.key} was given twice", remedy="Add each frame once")
        self._volumes[frame] = frame_volumes(
            segmentation.mask,
            segmentation.members,
            segmentation.grid.voxel_volume,
            num_classes=segmentation.probabilities.shape[0],
        )
        self._labels = segmentation.labels
        if not self._labels.cardiac:
            self._checked.append(self._frame_quality(f"frame {frame}", segmentation))
        self._kept[frame] = segmentation
        candidates = {self._extreme(self.ed, largest=True), self._extreme(self.es, largest=False)}
        self._kept = {number: kept for number, kept in self._kept.items() if number in candidates}

    def _extreme(self, known: int | None, *, largest: bool) -> int:
        if known is not None:
            return known
        if not self._labels.cardiac:
            return min(self._volumes)
        lv = {number: volumes.combined[_LV] for number, volumes in self._volumes.items()}
        return max(lv, key=lv.__getitem__) if largest else min(lv, key=lv.__getitem__)

    def result(self) -> StudyResult:
        """Function where there are two frames or more, and the checks of the frames that count.

        Raises:
            InputError: when no frame was given, or ED or ES named a frame that was not.
        """
        if not self._volumes:
            raise InputError(f"{self.key} has no frames", remedy="Add its frames first")
        volumes = dict(sorted(self._volumes.items()))
        if not self._labels.cardiac:
            return StudyResult(self.key, volumes, combine(self._checked), labels=self._labels)
        if len(volumes) == 1:
            return StudyResult(self.key, volumes, self._quality(self.key_frames()))
        try:
            ed, es = self._ed_es(list(volumes))
        except InputError as error:
            if self.ed is not None and self.es is not None:
                raise
            return StudyResult(
                self.key, volumes, self._quality(self.key_frames(), [Finding("ejection fraction", str(error))])
            )
        function = cardiac_function(
            volumes[ed],
            volumes[es],
            height=self.height,
            weight=self.weight,
            level=self.level,
            widening=self.widening,
            margin=self.margin,
        )
        spread = cardiac_function(volumes[ed], volumes[es], level=self.level, possible=False)
        together = [
            *assess_function(spread, self.limits),
            *compare_phases(volumes[ed], volumes[es], self.limits),
        ]
        quality = self._quality(self.key_frames(), together)
        return StudyResult(self.key, volumes, quality, ed, es, function)

    def _ed_es(self, numbers: list[int]) -> tuple[int, int]:
        for name, frame in (("ED", self.ed), ("ES", self.es)):
            if frame is not None and frame not in numbers:
                what = f"{name} is frame {frame}, which {self.key} does not have"
                raise InputError(what, remedy=f"Choose among {listed(numbers)}")
        ed, es = find_ed_es(
            [float(self._volumes[number].combined[_LV]) for number in numbers],
            ed=None if self.ed is None else numbers.index(self.ed),
            es=None if self.es is None else numbers.index(self.es),
        )
        return numbers[ed], numbers[es]

    def key_frames(self) -> dict[str, Segmentation]:
        """``{"ED": …, "ES": …}``, or the one kept frame under its number."""
        if len(self._kept) < 2 or not self._labels.cardiac:
            return {f"frame {number}": kept for number, kept in self._kept.items()}
        ed, es = self._ed_es(sorted(self._volumes))
        return {"ED": self._kept[ed], "ES": self._kept[es]}

    def _quality(self, frames: Mapping[str, Segmentation], findings: Sequence[Finding] = ()) -> Quality:
        stacks = [finding for stored in frames.values() for finding in self._stack_findings(stored)]
        grids = compare_grids({name: stored.grid.spacing for name, stored in frames.items()})
        assessed = [self._frame_quality(name, stored) for name, stored in frames.items()]
        return combine([Quality(tuple(dict.fromkeys(stacks)) + grids), *assessed], findings)  # each remark once

    def _stack_findings(self, stored: Segmentation) -> tuple[Finding, ...]:
        seen = stored.in_view().volume
        order = slice_order(stored.grid)
        note = () if order is None else (Finding("slice order", order, review=False),)
        return (*note, *assess_stack(seen.data, seen.grid.spacing, limits=self.limits))

    def _frame_quality(self, name: str, stored: Segmentation) -> Quality:
        seen = stored.in_view()
        shape = assess_frame(
            seen.mask,
            seen.members,
            frame=name,
            header_note=seen.grid.note,
            limits=self.limits,
            slice_numbers=stored.slice_numbers(),
            labels=stored.labels,
        )
        if not stored.labels.cardiac:
            return shape
        return combine([shape], assess_heart(seen.mask, seen.grid.spacing, frame=name, limits=self.limits))


def write_cohort(results: Sequence[StudyResult], path: str | Path) -> None:
    """A CSV with a row per study: frames, function with intervals, verdict, reasons; of a single image its volumes.

    Of structures other than ACDC's their volumes in the first frame, verdict and reasons.
    """
    if results and not results[0].labels.cardiac:
        write_csv(Path(path), [_volume_row(result) for result in results])
        return
    write_cohort_csv(path, {r.key: r.function for r in results}, {r.key: _further_columns(r) for r in results})


def _further_columns(result: StudyResult) -> dict[str, str]:
    frames = {"ed_frame": str(result.ed or ""), "es_frame": str(result.es or "")}
    alone = next(iter(result.volumes.values())) if len(result.volumes) == 1 else None
    return frames | _verdict(result) | single_image_columns(alone)


def _volume_row(result: StudyResult) -> dict[str, Any]:
    combined = result.volumes[min(result.volumes)].combined
    by_name = {f"{name}_ml": float(combined[label]) for label, name in result.labels.by_number.items()}
    return {"case": result.key, "frames": len(result.volumes), **by_name, **_verdict(result)}


def _verdict(result: StudyResult) -> dict[str, str]:
    return {"quality": result.quality.status, "reasons": "; ".join(result.quality.reasons)}
