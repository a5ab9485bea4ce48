"""The geometry: a beating heart of known volumes, its contours in any section, and the labels.

Lengths are in millimetres. x and y run along the first two array axes (ACDC is displayed with x to the right and y
downwards, so that the right ventricle lies to the left), measured from the image centre; z runs from the top of the
stack, at the base of the heart, to the apex.

* left-ventricular cavity: a half-ellipsoid of volume 2/3 pi r^2 L, base radius r, length L. Its outline is modulated
  over the angle in such a way that every cross-section keeps its area, so the closed form stays exact.
* myocardium: the shell to a second half-ellipsoid. It is incompressible: of the same volume in every frame.
* right ventricle: a crescent h(z) g(angle) thick on the septum, scaled to its target volume.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import brentq

from cgdpm_med.phantom.spec import POPULATIONS, PhantomSpec, keyed_rng

Array = NDArray[np.floating[Any]]

_CONTOUR_ANGLES = np.linspace(-np.pi, np.pi, 721)
_APEX_WALL = 0.7  # apical wall thickness, as a ratio to the basal one
_OUTFLOW_MM = 8.0  # depth below the base to which the outflow tract may interrupt the myocardium
_VALVE_MM = 2.0  # the wall is seen this far above the labelled base
_RV_MIN_MM = 3.0  # the crescent ends where it gets thinner: contours drawn by hand are blunt there
_FAR = -50.0  # signed distance of a structure that is absent

# --- one heart -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heart:
    """One drawn anatomy: volumes in mm^3, lengths in mm, angles in radians from the x axis."""

    lv_volume: tuple[float, float]  # end-diastole, end-systole; also below
    lv_length: tuple[float, float]
    rv_volume: tuple[float, float]
    myocardium: float
    apex: float
    centre: tuple[float, float]
    drift: tuple[float, float]  # shift of the centre per mm of depth below the base
    rv_angle: float
    rv_halfwidth: float
    rv_skew: float
    outline: Array  # cavity radius over the angle, root mean square 1
    thickness: Array  # wall thickness over the angle, mean 1
    papillaries: tuple[tuple[float, float, float], ...]  # angle, radius, depth as a ratio to the length
    outflow: float  # half-angle of the gap in the most basal myocardium


@dataclass(frozen=True)
class Pose:
    """The heart at one moment: the half-ellipsoids and the scale of the crescent."""

    base: float
    lv_radius: float
    lv_length: float
    wall: float
    rv_base: float
    rv_length: float
    rv_halfwidth: float
    rv_height: float

    @property
    def epi_length(self) -> float:
        return self.lv_length + _APEX_WALL * self.wall


def _about(rng: np.random.Generator, mean_sd: tuple[float, float]) -> float:
    """A draw from a normal distribution cut at 1.5 standard deviations."""
    return mean_sd[0] + mean_sd[1] * float(np.clip(rng.standard_normal(), -1.5, 1.5))


def _harmonics(rng: np.random.Generator, amplitude: float) -> Array:
    """A smooth random function of the angle: harmonics 2 to 5, falling off, of the given overall size."""
    orders = np.arange(2, 6)
    weights = amplitude * rng.standard_normal(4) / orders
    phases = rng.uniform(0, 2 * np.pi, 4)
    return np.asarray(weights @ np.cos(orders[:, None] * _CONTOUR_ANGLES + phases[:, None]))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values[:-1] ** 2)))  # the last angle repeats the first


def draw_heart(spec: PhantomSpec) -> Heart:
    """One heart of the group, its size limited by the height of the stack."""
    rng, group = keyed_rng(spec.seed, "heart"), POPULATIONS[spec.group]
    edv, ef = _about(rng, group.edv), _about(rng, group.ef)
    rv_edv, rv_ef, myocardium = _about(rng, group.rv_edv), _about(rng, group.rv_ef), _about(rng, group.myocardium)
    length = min(_about(rng, (80, 3)) * (edv / 130) ** 0.22, spec.stack_mm - 12.0)
    descent = rng.uniform(0.2, 0.6) * 12.0 * ef / 0.6
    rv_angle = np.radians(_about(rng, (158, 16)))
    infarct_angle = rng.uniform(-np.pi, np.pi)

    from_rv = np.cos(_CONTOUR_ANGLES - rv_angle)
    outline = 1 + _harmonics(rng, 0.04) - group.flattening * np.cos(2 * (_CONTOUR_ANGLES - rv_angle))
    scar = np.clip(np.cos(_CONTOUR_ANGLES - infarct_angle), 0, None) ** 2
    thickness = 1 + _harmonics(rng, 0.08) + group.septum * from_rv - group.infarct * scar
    opposite = rv_angle + np.pi
    papillaries = tuple(
        (opposite + side * rng.uniform(0.75, 1.05), rng.uniform(4.2, 6.0), rng.uniform(0.45, 0.6)) for side in (-1, 1)
    )
    return Heart(
        lv_volume=(1000 * edv, 1000 * edv * (1 - ef)),
        lv_length=(length, length - descent),
        rv_volume=(1000 * rv_edv, 1000 * rv_edv * (1 - rv_ef)),
        myocardium=1000 * myocardium,
        apex=min(rng.uniform(0.0, 0.3) * spec.spacing[2], spec.stack_mm - length - 8.0) + length,
        centre=(_about(rng, (-3, 6)), _about(rng, (-8, 6))),
        drift=(float(rng.normal(0.03, 0.03)), float(rng.normal(0.02, 0.03))),
        rv_angle=float(rv_angle),
        rv_halfwidth=float(rng.uniform(1.2, 1.4)),
        rv_skew=float(rng.uniform(-0.3, 0.3)),
        outline=outline / _rms(outline),
        thickness=thickness / thickness[:-1].mean(),
        papillaries=papillaries,
        outflow=float(rng.uniform(0.3, 0.5) * (rng.random() < 0.5)),
    )


def _crescent(u: Array, skew: float) -> Array:
    """Thickness of the right ventricle over ``u`` in [-1, 1], the angle as a ratio to the half-width."""
    return np.clip(1 - u**2, 0, None) ** 0.75 * (1 + skew * u)


def _rv_profile(s: Array) -> Array:
    """Thickness of the right ventricle over the depth ``s`` >= 0, a ratio to its length."""
    return np.clip(1 - s**1.4, 0, None)


def _rv_narrowing(s: Array) -> Array:
    """Half-width of the crescent over the depth ``s``, as a ratio to the basal one."""
    return 1 - 0.3 * s


def _epi_radius(pose: Pose, depth: Array) -> Array:
    inside = np.clip(1 - (depth / pose.epi_length) ** 2, 0, None)
    return (pose.lv_radius + pose.wall) * np.sqrt(inside)


def pose_at(heart: Heart, contraction: float) -> Pose:
    """The heart between end-diastole (``contraction`` 0) and end-systole (1)."""

    def between(pair: tuple[float, float]) -> float:
        return pair[0] + contraction * (pair[1] - pair[0])

    volume, length = between(heart.lv_volume), between(heart.lv_length)
    radius = float(np.sqrt(1.5 * volume / (np.pi * length)))

    def excess(wall: float) -> float:
        shell = (radius + wall) ** 2 * (length + _APEX_WALL * wall) - radius**2 * length
        return 2 / 3 * np.pi * shell - heart.myocardium

    wall = float(brentq(excess, 0.0, 60.0))
    base = heart.apex - length
    rv_base = base + contraction * 6.0  # the tricuspid annulus descends further than the mitral one
    rv_length = 0.9 * (heart.apex - rv_base)
    halfwidth = (1 - 0.15 * contraction) * heart.rv_halfwidth
    pose = Pose(base, radius, length, wall, rv_base, rv_length, halfwidth, rv_height=0.0)
    return replace(pose, rv_height=_rv_height(heart, pose, between(heart.rv_volume)))


def _rv_height(heart: Heart, pose: Pose, volume: float) -> float:
    """The crescent's scale h for a volume: integral of (R h g + h^2 g^2 / 2) over angle and depth, quadratic in h."""
    u, s = np.linspace(-1, 1, 401), np.linspace(0, 1, 401)
    g, profile, width = _crescent(u, heart.rv_skew), _rv_profile(s), _rv_narrowing(s)
    radius = _epi_radius(pose, pose.rv_base - pose.base + s * pose.rv_length)
    cell = pose.rv_halfwidth * pose.rv_length
    linear = trapezoid(g, u) * trapezoid(radius * profile * width, s) * cell
    quadratic = trapezoid(g**2, u) * trapezoid(profile**2 * width, s) * cell / 2
    return float((-linear + np.sqrt(linear**2 + 4 * quadratic * volume)) / (2 * quadratic))


# --- contours and labels -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contours:
    """One cross-section. Distances are in mm, radial from the cavity's centre, positive inside the structure."""

    lv: Array
    epi: Array
    rv: Array
    papillary: Array
    gap: NDArray[np.bool_]
    above_base: bool
    above_rv_base: bool
    atrial: bool
    apical: float  # 0 at the base, 1 at the apex


def contours_at(heart: Heart, pose: Pose, x: Array, y: Array, z: float) -> Contours:
    """The contours at height ``z`` on pixel centres ``x``, ``y`` (mm from the image centre).

    Above the base the sections of the base continue: they draw the atrium and the outflow tracts.
    """
    depth = z - pose.base
    dx = x - heart.centre[0] - heart.drift[0] * depth
    dy = y - heart.centre[1] - heart.drift[1] * depth
    r, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    section = max(depth, 0.0)
    lv_mean = pose.lv_radius * float(np.sqrt(max(1 - (section / pose.lv_length) ** 2, 0.0)))
    epi_mean = float(_epi_radius(pose, np.asarray(section)))
    lv = lv_mean * heart.outline
    epi = lv + (epi_mean - lv_mean) * heart.thickness
    epi *= epi_mean / max(_rms(epi), 1e-6)  # keeps the area of the cross-section
    epi_at = np.interp(angle, _CONTOUR_ANGLES, epi)

    from_rv = _wrap(angle - heart.rv_angle)
    rv_depth = (z - pose.rv_base) / pose.rv_length
    s = np.asarray(np.clip(rv_depth, 0, 1))
    u = np.clip(from_rv / (pose.rv_halfwidth * _rv_narrowing(s)), -1, 1)
    height = pose.rv_height * _rv_profile(s) * _crescent(u, heart.rv_skew)
    return Contours(
        lv=np.interp(angle, _CONTOUR_ANGLES, lv) - r if lv_mean > 0 else np.full_like(r, _FAR),
        epi=epi_at - r if epi_mean > 0 else np.full_like(r, _FAR),
        rv=np.where(height > _RV_MIN_MM, np.minimum(r - epi_at, epi_at + height - r), _FAR),
        papillary=_papillary_distance(heart, pose, dx, dy, depth, lv_mean),
        gap=(np.abs(from_rv + 0.5) < heart.outflow) & (depth < _OUTFLOW_MM),
        above_base=depth < 0,
        above_rv_base=rv_depth < 0,
        atrial=depth < -_VALVE_MM,
        apical=section / pose.epi_length,
    )


def _wrap(angle: Array) -> Array:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _papillary_distance(heart: Heart, pose: Pose, dx: Array, dy: Array, depth: float, lv_mean: float) -> Array:
    """Signed distance to the nearer of two spindles that lean on the cavity wall."""
    best = np.full(dx.shape, _FAR)
    for angle, radius, level in heart.papillaries:
        taper = 1 - ((depth / pose.lv_length - level) / 0.33) ** 2
        if taper > 0:
            size = min(radius * float(np.sqrt(taper)), 0.4 * lv_mean)
            reach = lv_mean - 0.9 * size
            distance = size - np.hypot(dx - reach * np.cos(angle), dy - reach * np.sin(angle))
            best = np.maximum(best, distance)
    return best


def labels_of(c: Contours) -> NDArray[np.uint8]:
    """ACDC's labels: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle with its papillary muscles."""
    labels = np.zeros(c.lv.shape, np.uint8)
    if not c.above_rv_base:
        labels[c.rv > 0] = 1
    if not c.above_base:
        labels[(c.epi > 0) & ~c.gap] = 2
        labels[c.lv > 0] = 3
    return labels
