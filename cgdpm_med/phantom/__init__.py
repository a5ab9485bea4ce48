"""A synthetic short-axis cardiac cine study, written in the folder layout of the ACDC challenge.

The phantom is a drawing with known answers, for demonstrations, tests and installations without patient data. It
resembles balanced steady-state free-precession MRI closely enough to exercise a segmentation pipeline; it is no
model of physiology, and nothing clinical may be concluded from it. No patient's picture enters it: only averages of a
population (volumes, wall thickness, contrast ratios) set its parameters.

``spec`` says what can be asked for, ``anatomy`` is the geometry and its labels, ``painting`` the image, ``study`` puts
them together, counts the truth and writes the files.
"""

from __future__ import annotations

from cgdpm_med.phantom.spec import GROUPS, PhantomSpec
from cgdpm_med.phantom.study import (
    MYOCARDIAL_DENSITY,
    Phantom,
    PhantomTruth,
    make_phantom,
    write_phantom_dataset,
    write_phantom_patient,
)

__all__ = [
    "GROUPS",
    "MYOCARDIAL_DENSITY",
    "Phantom",
    "PhantomSpec",
    "PhantomTruth",
    "make_phantom",
    "write_phantom_dataset",
    "write_phantom_patient",
]
