"""Data sets known by their numbers alone."""

from __future__ import annotations

from dataclasses import replace

from cgdpm_med.datasets.fingerprint import Fingerprint

PICTURES = Fingerprint(
    examples=800,
    patients=800,
    unlabelled=0,
    pictures=True,
    channels=("grey",),
    slices=800,
    sizes=((256, 256, 256), (256, 256, 256), (1, 1, 1)),
    spacing=((1, 1), (1, 1)),
    extent=(256, 256),
    reach=(250, 250),
    farthest=(256, 256),
    intensities=((-0.9, 0, 0.9),),
    foreground=((-0.5, 0.9),),
    labels=("foreground",),
    fractions=(0.05,),
    present=(790,),
    diameter=48,
    pieces=1.2,
)

HEARTS = replace(
    PICTURES,
    pictures=False,
    channels=("MR",),
    labels=("RV", "Myo", "LV"),
    sizes=((154, 216, 428), (154, 256, 512), (6, 9, 18)),
    spacing=((1.37, 1.56), (5, 10)),
    extent=(350, 350),
    reach=(150, 140),
    farthest=(190, 180),
    fractions=(0.01, 0.01, 0.01),
    present=(90, 90, 90),
    slices=1800,
)
