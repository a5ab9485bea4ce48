"""The image: chest and heart as intensities, then what a scanner adds (slice profile, shading, blur, noise)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from cgdpm_med.phantom.anatomy import Array, Contours, Heart, Pose, contours_at, pose_at
from cgdpm_med.phantom.spec import PhantomSpec, keyed_rng

# ratios to left-ventricular blood, as in balanced steady-state free precession
_RV_BLOOD, _MYOCARDIUM, _FAT, _MUSCLE, _LIVER, _LUNG, _AIR = 0.84, 0.36, 1.35, 0.30, 0.36, 0.11, 0.04
_SUBSLICES = (-0.28, 0.0, 0.28)  # heights sampling the slice profile, as ratios to the slice spacing
_HEART_MM = 105.0  # half of the window painted anew in every frame


@dataclass(frozen=True)
class Canvas:
    """Pixel centres in mm from the image centre (2-D), slice heights in mm from the top of the stack (1-D)."""

    x: Array
    y: Array
    z: Array
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, spec: PhantomSpec) -> Canvas:
        """The whole field of view."""
        x, y = ((np.arange(n) - (n - 1) / 2) * d for n, d in zip(spec.shape[:2], spec.spacing[:2], strict=True))
        z = (np.arange(spec.shape[2]) + 0.5) * spec.spacing[2]
        grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
        return cls(grid_x, grid_y, z, spec.spacing)

    def window(self, centre: tuple[float, float], half: float) -> tuple[slice, slice]:
        """Array indices of the square ``half`` mm around a place, cut at the border."""
        near_x = np.flatnonzero(np.abs(self.x[:, 0] - centre[0]) <= half)
        near_y = np.flatnonzero(np.abs(self.y[0] - centre[1]) <= half)
        return slice(near_x[0], near_x[-1] + 1), slice(near_y[0], near_y[-1] + 1)

    def crop(self, window: tuple[slice, slice]) -> Canvas:
        """The part of the field of view in a window."""
        return Canvas(self.x[window], self.y[window], self.z, self.spacing)

    def inside(self, distance: Array) -> Array:
        """Fraction of each pixel inside a contour at a signed distance in mm (positive inside)."""
        pixel = (self.spacing[0] * self.spacing[1]) ** 0.5
        return np.clip(0.5 + distance / pixel, 0, 1)

    def texture(self, rng: np.random.Generator, scale: float) -> Array:
        """Smooth noise (X, Y, Z) of unit variance at its knots: ``scale`` mm in plane, three times that through it."""
        shape, steps = (*self.x.shape, len(self.z)), (scale, scale, 3 * scale)
        knots = [max(2, round(n * d / step) + 1) for n, d, step in zip(shape, self.spacing, steps, strict=True)]
        zoom = [n / k for n, k in zip(shape, knots, strict=True)]
        return np.asarray(ndimage.zoom(rng.standard_normal(knots), zoom, order=2, mode="nearest", grid_mode=True))


def _blend(image: Array, value: Array | float, fraction: Array) -> Array:
    return image + fraction * (value - image)


def paint_chest(spec: PhantomSpec, canvas: Canvas, heart: Heart) -> Array:
    """Everything but the heart, (X, Y, Z): air, skin fat, muscle, lung above the diaphragm, abdomen below it."""
    rng, pose = keyed_rng(spec.seed, "chest"), pose_at(heart, 0.0)
    x, y = canvas.x[..., None] - heart.centre[0], canvas.y[..., None] - heart.centre[1]
    depth = np.clip(canvas.z - pose.base, 0, None)
    coarse, fine = canvas.texture(rng, 28.0), canvas.texture(rng, 6.0)
    epi = pose.lv_radius + pose.wall

    half_width, half_height, tilt = rng.uniform(115, 135), rng.uniform(200, 225), np.radians(rng.uniform(-14, 4))
    fat_mm, muscle_mm = rng.uniform(8, 22), rng.uniform(6, 14)
    reach = epi + pose.rv_height + fat_mm + muscle_mm + rng.uniform(0, 12)  # from the cavity to the skin in front
    bx, by = x - half_width + reach - 0.15 * depth, y - rng.uniform(50, 80)
    bx, by = np.cos(tilt) * bx - np.sin(tilt) * by, np.sin(tilt) * bx + np.cos(tilt) * by
    radius = (np.abs(bx / half_width) ** 2.2 + np.abs(by / half_height) ** 2.2) ** (1 / 2.2)
    under_skin = (1 - radius) * half_width + 3 * coarse
    under_fat = under_skin - fat_mm * (1 + 0.4 * coarse)
    cavity = under_fat - muscle_mm * (1 + 0.3 * coarse)

    dome = rng.uniform(-4, 22) * np.exp(-(((x - rng.uniform(45, 80)) / 30) ** 2))
    floor = epi + rng.uniform(0, 6) - 0.12 * depth - dome + 0.12 * np.abs(x)
    image = _blend(np.full(under_skin.shape, _AIR), _FAT * (1 + 0.08 * coarse), canvas.inside(under_skin))
    image = _blend(image, _MUSCLE * (1 + 0.2 * fine) + 0.8 * np.clip(coarse - 0.9, 0, 1), canvas.inside(under_fat))
    image = _blend(image, _lung(rng, canvas, fine), canvas.inside(cavity))
    abdomen = _abdomen(rng, canvas, x, y - floor, depth, coarse, fine)
    return _blend(image, abdomen, canvas.inside(np.minimum(cavity, y - floor + 3 * coarse)))


def _lung(rng: np.random.Generator, canvas: Canvas, fine: Array) -> Array:
    """Dark parenchyma with bright vessels cut across."""
    image = _LUNG * (1 + 0.25 * fine)
    pixel = canvas.spacing[0] * canvas.spacing[1]
    for radius_mm, per_mm2, level in ((0.9, 1 / 300, 0.35), (1.7, 1 / 1400, 0.7)):
        sigma = [max(radius_mm / d, 0.4) for d in canvas.spacing[:2]]
        peaks = (rng.random(image.shape) < per_mm2 * pixel) * rng.uniform(0.4, 1.6, image.shape)
        image = image + level * 2 * np.pi * sigma[0] * sigma[1] * ndimage.gaussian_filter(
            peaks, (*sigma, 0), truncate=3
        )
    return image


def _abdomen(
    rng: np.random.Generator, canvas: Canvas, x: Array, below: Array, depth: Array, coarse: Array, fine: Array
) -> Array:
    """Liver under the right ventricle, stomach under the left; ``below`` them (mm) organs in a patchwork with fat."""
    sites = rng.uniform((-160, -10, -40), (200, 250, 120), (190, 3))
    levels = rng.choice([0.22, 0.33, 0.45, 0.95, 1.15], len(sites), p=[0.2, 0.35, 0.2, 0.12, 0.13])
    pixels = np.stack(np.broadcast_arrays(x + 6 * coarse, below + 3 * fine, 0.6 * depth), -1)
    shown = pixels[..., 1] > -25
    distance, nearest = cKDTree(sites).query(pixels[shown], k=2)
    organ = canvas.inside((distance[:, 1] - distance[:, 0]) / 2 - rng.uniform(0.8, 2.2))
    image = np.full(shown.shape, 0.85 * _FAT)
    image[shown] = _blend(image[shown], levels[nearest[:, 0]], organ)
    image *= 1 + 0.15 * fine

    spots = _LIVER * (1 + 0.05 * fine) + 0.5 * np.clip(fine - 1.6, 0, 0.8)
    liver = rng.uniform(34, 46) - np.hypot((x + rng.uniform(20, 45)) * 0.8, below - rng.uniform(26, 36)) + 5 * coarse
    stomach = rng.uniform(18, 28) - np.hypot((x - rng.uniform(35, 60)) * 0.8, below - rng.uniform(22, 30)) + 4 * coarse
    image = _blend(image, rng.uniform(0.3, 0.55) * (1 + 0.25 * fine), canvas.inside(stomach))
    return _blend(image, spots, canvas.inside(liver))


def _paint_section(canvas: Canvas, chest: Array, c: Contours, flow: Array, fine: Array, rim: Array) -> Array:
    """The heart over the chest in one thin section; all arrays share one 2-D shape."""
    fat_mm = np.clip(1.0 + 4.0 * rim, -1, 9)
    image = _blend(chest, 0.85 * _FAT, canvas.inside(np.maximum(c.epi, c.rv) + fat_mm))
    image = _blend(image, _MYOCARDIUM, canvas.inside(c.rv + 2.5))
    wall = canvas.inside(c.epi)
    image = _blend(image, _MYOCARDIUM * (1 + 0.07 * fine), wall)
    cords = np.clip(1 - c.rv / 9.0, 0, 1) * np.clip(0.7 * fine + 0.5 * rim - 0.8 + 0.8 * c.apical, 0, 0.45)
    image = _blend(image, _RV_BLOOD * flow - cords, canvas.inside(c.rv))
    if c.atrial:
        return _blend(image, 0.85 * flow, canvas.inside(c.epi + 1.0))
    image = np.where(c.gap, _blend(image, 0.8 * flow, wall), image)
    near_wall = np.clip(1 - c.lv / 7.0, 0, 1) * (c.lv > 0)
    trabeculae = near_wall * np.clip(fine - 0.4 + 0.6 * c.apical, 0, 0.6)
    image = _blend(image, flow - trabeculae, canvas.inside(c.lv))
    return _blend(image, 1.2 * _MYOCARDIUM, canvas.inside(np.minimum(c.papillary + 1.0 * fine, c.lv + 0.5)))


def paint_frame(
    spec: PhantomSpec, canvas: Canvas, heart: Heart, pose: Pose, chest: Array, frame: int
) -> NDArray[np.int16]:
    """One frame as a magnitude image: sections averaged over the slice, shading, blur, Rician noise."""
    rng, still = keyed_rng(spec.seed, "frame", frame), keyed_rng(spec.seed, "texture")
    shading, gain = _shading(spec, canvas, heart, still), still.uniform(150, 300)
    window = canvas.window(heart.centre, _HEART_MM)
    near = canvas.crop(window)
    fine, rim = near.texture(still, 3.5), near.texture(still, 16.0)
    flow = 1 + 0.07 * near.texture(rng, 10.0) - 0.05 * near.texture(rng, 4.0)
    image = chest.copy()
    for k, z in enumerate(canvas.z):
        heights = (z + offset * spec.spacing[2] for offset in _SUBSLICES)
        sections = [contours_at(heart, pose, near.x, near.y, height) for height in heights]
        textures = flow[..., k], fine[..., k], rim[..., k]
        below = chest[(*window, k)]
        image[(*window, k)] = np.mean([_paint_section(near, below, c, *textures) for c in sections], axis=0)
    image = ndimage.gaussian_filter(image * shading[..., None], (0.55, 0.55, 0), truncate=3)
    noise = ndimage.gaussian_filter(rng.standard_normal((2, *spec.shape)), (0, 0.5, 0.5, 0), truncate=3)
    noise *= spec.noise / noise.std()
    magnitude = np.hypot(image + noise[0], noise[1])
    return np.rint(np.clip(gain * magnitude, 0, 4095)).astype(np.int16)


def _shading(spec: PhantomSpec, canvas: Canvas, heart: Heart, rng: np.random.Generator) -> Array:
    """Receive-coil field, brightest at the anterior chest wall and 1 at the left ventricle."""
    x, y = (canvas.x - heart.centre[0]) / 100, (canvas.y - heart.centre[1]) / 100
    slope_x, slope_y, bend = rng.uniform(0.06, 0.18), rng.uniform(0.0, 0.15), rng.uniform(-0.03, 0.05)
    return np.asarray(np.exp(-spec.bias * (slope_x * x + slope_y * y + bend * (x**2 + y**2))))
