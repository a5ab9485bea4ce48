"""Data sets known by their numbers alone."""

from __future__ import annotations

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
