"""Masks of one body: what lies apart goes and is counted, in the combined mask and in every member's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO, shared_path
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray

from cgdpm_med import Sampling, Segmenter, acdc_datalist
from cgdpm_med.inference.components import OneBodyd, largest_component, one_body
from cgdpm_med.inference.segmenter import Segmentation, ensemble_settings
from cgdpm_med.inference.staple import combine_staple
from cgdpm_med.volumes import read_volume

BUNDLE = REPO / "bundles" / "acdc_segmentation"


# --- the functions ----------------------------------------------------------------------------------------------------


def test_structures_that_touch_are_one_body_though_each_lies_in_pieces() -> None:
    mask = np.zeros((7, 3, 1), np.uint8)
    mask[0:5, 1, 0] = [1, 2, 3, 2, 1]
    kept, removed = one_body(mask)
    np.testing.assert_array_equal(kept, mask)
    assert removed == {1: 0, 2: 0, 3: 0}


def test_what_lies_apart_goes_and_is_counted_by_label() -> None:
    mask = np.zeros((9, 3, 1), np.uint8)
    mask[0:4, 1, 0] = [1, 2, 3, 2]
    mask[6:8, 0, 0] = [1, 2]
    mask[8, 2, 0] = 1  # a gap of one voxel would part nothing, but this touches only at a corner of what goes
    kept, removed = one_body(mask)
    assert removed == {1: 2, 2: 1, 3: 0}
    assert kept[4:].sum() == 0
    np.testing.assert_array_equal(kept[:4], mask[:4])
    assert kept.dtype == np.uint8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lone_slice_without_the_mask_parts_nothing_and_two_do(axis: int) -> None:
    for missing, gone in ((1, 0), (2, 2 * 9)):
        mask = np.full((3, 3, 5 + missing), 3, np.uint8)
        mask[..., 2 : 2 + missing] = 0
        mask = np.moveaxis(mask, 2, axis)
        kept, removed = one_body(mask)
        assert removed == {3: gone}
        assert np.count_nonzero(kept) == np.count_nonzero(mask) - gone


def test_nothing_is_one_body() -> None:
    kept, removed = one_body(np.zeros((2, 2, 2), np.uint8))
    assert removed == {}
    assert not kept.any()


def flooded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece, found voxel by voxel."""
    left, best = set(map(tuple, np.argwhere(inside))), set[tuple[int, ...]]()
    for start in map(tuple, np.argwhere(inside)):
        if start not in left:
            continue
        left.discard(start)
        piece, queue = {start}, deque([start])
        while queue:
            at = queue.popleft()
            for step in product((-1, 0, 1), repeat=inside.ndim):
                near = tuple(a + b for a, b in zip(at, step, strict=True))
                if near in left:
                    left.discard(near)
                    piece.add(near)
                    queue.append(near)
        best = piece if len(piece) > len(best) else best
    out = np.zeros_like(inside)
    for at in best:
        out[at] = True
    return out


@settings(deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.booleans()))
def test_the_largest_component_as_a_flood_finds_it(inside: NDArray[np.bool_]) -> None:
    thinned = inside.copy()
    thinned[::2, 1::2] = False
    for each in (inside, thinned):
        np.testing.assert_array_equal(largest_component(each), flooded(each))


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)))
def test_one_body_takes_away_only_and_once(mask: NDArray[np.uint8]) -> None:
    kept, removed = one_body(mask)
    assert set(np.unique(kept[kept != mask])) <= {0}
    assert sum(removed.values()) == np.count_nonzero(mask) - np.count_nonzero(kept)
    again, more = one_body(kept)
    np.testing.assert_array_equal(again, kept)
    assert not any(more.values())


# --- the transform ----------------------------------------------------------------------------------------------------


def parted(*ends: int) -> NDArray[np.uint8]:
    """(K, 8, 1, 1): a body of three voxels, and in each channel a lone voxel where ``ends`` say, or none at 0."""
    maps = np.zeros((len(ends), 8, 1, 1), np.uint8)
    maps[:, 0:3] = 3
    for channel, end in zip(maps, ends, strict=True):
        if end:
            channel[end] = 1
    return maps


def test_every_channel_is_reduced_alone_and_the_mask_counted() -> None:
    meta = {"filename_or_obj": "a"}
    data: dict[Hashable, Any] = {
        "mask": MetaTensor(parted(7), meta=meta),
        "members": torch.from_numpy(parted(0, 5, 6)),
        "entropy": "as it was",
    }
    out: Any = OneBodyd(["mask", "members"])(data)
    np.testing.assert_array_equal(out["mask"], parted(0))
    np.testing.assert_array_equal(out["members"], parted(0, 0, 0))
    assert out["removed_voxels"] == {1: 1, 3: 0}
    assert out["entropy"] == "as it was"
    assert out["mask"].meta["filename_or_obj"] == "a"
    assert out["mask"].dtype == out["members"].dtype == torch.uint8
    np.testing.assert_array_equal(data["mask"], parted(7))  # the item that was given stays


# --- in the shipped bundle --------------------------------------------------------------------------------------------


class Bright(torch.nn.Module):
    """Stands where the networks do: what is bright is the left ventricle, for the second member less of it."""

    sampling, precision, guide, out_channels = Sampling(members=2, steps=1), "float32", None, 4

    def infer(self, image: MetaTensor, _: object, progress: Callable[[int], None] | None = None) -> MetaTensor:
        x = torch.as_tensor(image).as_subclass(torch.Tensor)[0, 0]
        members = [torch.stack([x <= level, 0 * x, 0 * x, x > level]).float() for level in (-0.5, 0.5)]
        return MetaTensor(torch.cat(members)[None], meta=image.meta)


def segmented(path: Path, **changes: bool) -> tuple[Segmenter, Segmentation]:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(BUNDLE)
    for name, value in changes.items():
        parser[name] = value
    forth, back, body = (parser.get_parsed_content(name) for name in ("preprocessing", "decoding", "one_body"))
    stub = Bright()
    segmenter = Segmenter(forth, stub.infer, stub, back, one_body=body)  # type: ignore[arg-type]
    return segmenter, segmenter(read_volume(path), "k")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    data = np.zeros((40, 40, 4), np.float32)
    data[10:20, 10:20] = 100
    data[30:34, 30:34, 1] = 40  # the first member's alone, and the combined mask's
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(data, np.diag([-1.25, -1.25, 8, 1])), path)
    return path


def test_by_default_the_bundle_keeps_one_body_and_says_what_it_took(image: Path) -> None:
    segmenter, found = segmented(image)
    everything, all_found = segmented(image, one_body=False)
    assert ensemble_settings(segmenter)["one_body"] is True
    assert ensemble_settings(everything)["one_body"] is False
    assert all_found.removed_voxels is None
    assert found.removed_voxels is not None
    apart = (slice(25, None), slice(25, None))
    assert all_found.members[0][apart].any()
    assert not found.members[:, apart[0], apart[1]].any()
    assert not found.mask[apart].any()
    taken = np.count_nonzero(all_found.mask[apart])
    assert sum(found.removed_voxels.values()) == taken
    np.testing.assert_array_equal(found.probabilities, all_found.probabilities)
    rest = found.mask.copy()
    rest[apart] = all_found.mask[apart]
    np.testing.assert_array_equal(rest, all_found.mask)


def test_staple_of_one_body_is_one_body(image: Path) -> None:
    _, found = segmented(image)
    mask = found.mask.copy()
    mask[:, :, 3] = 0
    mask[0, 0, 3] = 3
    told = {1: 7, 3: 0}  # of the members, which STAPLE sees reduced
    lone = Segmentation(**{**vars(found), "members": np.stack([mask, mask]), "removed_voxels": told})
    combined = combine_staple(lone)
    assert combined.removed_voxels == {1: 7, 3: 1}
    assert combined.mask[0, 0, 3] == 0


# --- the reference ----------------------------------------------------------------------------------------------------


def test_every_heart_that_the_default_was_chosen_on_is_one_body() -> None:
    root = shared_path("data", "acdc")
    items = [item for section in ("train", "validation") for item in acdc_datalist(root, section)]  # type: ignore[arg-type]
    assert len(items) == 160
    for item in items:
        mask = np.asarray(nib.load(item["label"]).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
        assert not any(one_body(mask)[1].values()), item["key"]
