"""Exchanged labels are noticed, and what the hint says puts them right."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import heart, renamed, write_labels
from numpy.typing import NDArray

from cgdpm_med import evaluate_folders, parse_labels
from cgdpm_med.evaluation.label_hint import confusion, find_exchange, overlaps


def exchange_of(prediction: NDArray[np.uint8], reference: NDArray[np.uint16], structures: int = 3) -> dict[int, int]:
    found = find_exchange(confusion(prediction, reference.astype(np.uint8), structures))
    return {} if found is None else dict(found.fits)


def test_confusion_counted_by_hand() -> None:
    prediction, reference = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2, 0])
    counts = confusion(prediction, reference, 2)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 2]]
    np.testing.assert_allclose(overlaps(counts), [[2 / 3, 2 / 5], [0, 4 / 6]])


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ((0, 3, 2, 1), {1: 3, 3: 1}),
        ((0, 2, 1, 3), {1: 2, 2: 1}),
        ((0, 2, 3, 1), {1: 2, 2: 3, 3: 1}),
        ((0, 1, 2, 3), {}),
    ],
)
def test_an_exchange_is_found(values: tuple[int, ...], fits: dict[int, int]) -> None:
    assert exchange_of(heart(), renamed(heart(), *values)) == fits


def test_one_structure_alone_may_bear_another_ones_number() -> None:
    lone = np.where(heart() == 1, 1, 0).astype(np.uint8)
    assert exchange_of(lone, renamed(lone, 0, 3)) == {1: 3, 3: 1}


def test_two_of_many_classes_are_seen() -> None:
    """The mean over twelve classes would hide them."""
    mask = np.arange(13 * 4).reshape(13, 4).astype(np.uint8) // 4
    values = [*range(10), 12, 11, 10]
    assert exchange_of(mask, renamed(mask, *values), 12) == {10: 12, 12: 10}


def test_a_poor_mask_is_not_called_exchanged() -> None:
    """Everything is one structure, or lies elsewhere: no other names would make that good."""
    assert exchange_of(np.where(heart() > 0, 1, 0).astype(np.uint8), heart().astype(np.uint16)) == {}
    assert exchange_of(np.roll(heart(), 1, axis=1), heart().astype(np.uint16)) == {}


@pytest.mark.parametrize("values", [(0, 3, 2, 1), (0, 2, 3, 1)])
@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_the_labels_of_the_hint_put_it_right(tmp_path: Path, side: str, values: tuple[int, ...]) -> None:
    for name in ("a", "b"):
        write_labels(tmp_path / "ref" / f"{name}.nii.gz", renamed(heart(), *values))
        write_labels(tmp_path / "pred" / f"{name}.nii.gz", heart())
    (hint,) = evaluate_folders(tmp_path / "pred", tmp_path / "ref")["label_hints"]
    assert "swap" in hint["message"]
    assert (hint["cases"], hint["exchanged"]) == (["a", "b"], 1.0)
    words = shlex.split(hint["message"])
    given: dict[str, Any] = {f"{side}_labels": parse_labels(words[words.index(f"--{side}-labels") + 1])}
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref", **given)
    assert summary["average"]["dice"] == 1.0
    assert summary["label_hints"] == []


def test_one_exchanged_file_among_many_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_labels(tmp_path / "ref" / f"{name}.nii.gz", heart())
        write_labels(tmp_path / "pred" / f"{name}.nii.gz", heart() if name != "b" else renamed(heart(), 0, 3, 2, 1))
    (hint,) = evaluate_folders(tmp_path / "pred", tmp_path / "ref")["label_hints"]
    assert hint["cases"] == ["b"]
    assert "(b)" in hint["message"]
    assert "--reference-labels" not in hint["message"]  # would spoil the others
