"""Beyond which sizes and shapes of a heart a study goes to review."""

from __future__ import annotations

from dataclasses import dataclass

from cgdpm_med.inference.quality import QualityLimits


@dataclass(frozen=True)
class HeartLimits(QualityLimits):
    """Limits of the cardiac checks, beside those of any mask.

    The anatomical limits leave a margin around what ``scripts/reference_statistics.py`` finds in the 140 reference
    masks of the 70 training patients of the committed ACDC split ("references" below). What goes with volume may be
    half the smallest and one and a half times the largest of them, what goes with length .7 and 1.4 times, in round
    numbers: that admits children from about 10 kg on and dilated ventricles of 550 ml, and no newborn. The limit on
    the ensemble's own doubt depends on the network and is a default to be fitted on validation patients.

    Attributes:
        ef_width: longest interval of an ejection fraction's members, in percentage points, before any calibration.
            Default, to be fitted.
        open_cavity: largest fraction of the left ventricle's in-plane border that no myocardium covers. References:
            at most .0038.
        ef: plausible ejection fractions in percent. References: LV 10.5 to 72.9, RV 1.9 (the next 7) to 72.6.
        slices: fewest slices that hold a heart. References: 6; fewer than 4 sample no volume.
        pixel: size of a voxel in plane, mm. References: .70 to 1.88; wider at the top, for real-time cines.
        pixel_ratio: longest side of a pixel by its shortest. References: 1.
        slice_distance: distance of neighbouring slices, mm. References: 5 to 10; volumes resampled to finer slices
            and stacks with gaps pass, a wrong unit does not.
        stack: slices times their distance, mm. References: 50 to 110.
        picture: width and height of the picture, mm. References: 224 to 480; crops around the heart pass.
        alike: largest correlation of neighbouring slices' images, in the median over the stack. ACDC's images: at most
            .86, where slices lie 5 mm apart; neighbouring frames of a cine: .99. Judged from ``alike_distance`` on.
        alike_distance: slice distance in mm below which slices may look alike.
        lv_edv, rv_edv: ventricles at ED, ml. References: LV 49 to 374, RV 47 to 294.
        lv_esv, rv_esv: at ES, ml. References: LV 22 to 334, RV 13 to 248.
        mass: myocardium, g, at either phase. References: 34 to 300.
        lv_width: diameter of the circle as large as the left ventricle's largest slice, mm. References: 25 to 81.
        lv_length: slices with the left ventricle times their distance, mm. References: 50 to 100.
        lv_shape: that length by that width. References: .93 to 2.5; hearts of any size have it, so little is added.
        wall: mean thickness of the myocardium around the cavity, mm. References: 4.4 to 21. Less than a pixel is too
            thin, too.
        rv_to_lv: right by left ventricle at ED. References: .31 to 3.6.
        mass_change: myocardium at ES by that at ED; muscle keeps its volume. References: .88 to 1.47.
        stroke_difference: right and left stroke volume differ by at most so much, ml. References: at most 98.
        phase_slack: how much more than the ED that was given, or less than the ES, another frame's left ventricle may
            hold, as a part of that at ED. What masks of one ventricle differ by from frame to frame is less.
        jump: how far one frame's left ventricle may lie from the middle of its neighbours, as a part of the largest
            frame's; it must also be ``jump_ratio`` times what is usual in that beat. A broken frame does, not a heart.
        ends: the smaller of the left ventricle's first and last slice by its largest. References: at most .83.
        apex_first: how far the heart's centre may lie towards the apex, see
            :func:`~cgdpm_med.heart.checks.lean_to_apex`. References: at most -.016.
    """

    ef_width: float = 15.0
    open_cavity: float = 0.02
    ef: tuple[float, float] = (5.0, 80.0)
    slices: int = 4
    pixel: tuple[float, float] = (0.4, 3.0)
    pixel_ratio: float = 1.5
    slice_distance: tuple[float, float] = (0.5, 20.0)
    stack: tuple[float, float] = (35.0, 160.0)
    picture: tuple[float, float] = (80.0, 600.0)
    alike: float = 0.95
    alike_distance: float = 4.0
    lv_edv: tuple[float, float] = (25.0, 550.0)
    lv_esv: tuple[float, float] = (10.0, 500.0)
    rv_edv: tuple[float, float] = (25.0, 450.0)
    rv_esv: tuple[float, float] = (6.0, 375.0)
    mass: tuple[float, float] = (17.0, 450.0)
    lv_width: tuple[float, float] = (17.0, 110.0)
    lv_length: tuple[float, float] = (35.0, 140.0)
    lv_shape: tuple[float, float] = (0.8, 3.0)
    wall: tuple[float, float] = (3.0, 30.0)
    rv_to_lv: tuple[float, float] = (0.15, 5.4)
    mass_change: tuple[float, float] = (0.6, 2.0)
    stroke_difference: float = 150.0
    phase_slack: float = 0.05
    jump: float = 0.1
    jump_ratio: float = 6.0
    ends: float = 0.9
    apex_first: float = 0.0
