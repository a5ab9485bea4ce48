"""Pages of stacks that are stored in other ways, long lists of reasons, and how settings are spoken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pages import ORIGIN, Page, references
from segmentations import segmentation_of, wobbly

from cgdpm_med.heart.charts import ejection_chart
from cgdpm_med.inference.quality import Finding, Quality
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import Estimate
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.report.case import case_report
from cgdpm_med.report.cohort import cohort_report
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import ShortAxisView, read_volume

AFFINE = np.diag([-2.8, -2.8, 22.0, 1.0])


def stored(view: ShortAxisView, folder: Path) -> Segmentation:
    """One phantom's end-diastole from a file with these axes, segmented by the same members."""
    drawn = make_phantom(PhantomSpec.small(seed=4))
    path = folder / "v.nii"
    affine = AFFINE @ view.stored_from_shown(drawn.images[1].shape)
    nib.Nifti1Image(np.ascontiguousarray(view.apply(drawn.images[1])), affine).to_filename(path)
    return segmentation_of(view.apply(wobbly(drawn.labels[1]), first=1), read_volume(path))


def study_of(segmentation: Segmentation) -> Study:
    study = Study("k")
    study.add(1, segmentation)
    return study


def report(study: Study) -> str:
    return case_report(study.result(), study.key_frames(), ORIGIN)


def test_a_page_is_the_same_however_the_file_stores_the_stack(tmp_path: Path) -> None:
    ways = (ShortAxisView(), ShortAxisView((2, 1, 0), (False, True, True)))  # slices first, in their own order
    pages = [Page(report(study_of(stored(view, tmp_path)))) for view in ways]
    pictures = [[a["src"] for tag, a in page.tags if tag == "img"] for page in pages]
    assert len(pictures[0]) > 4
    assert pictures[0] == pictures[1]
    assert pages[0].text == pages[1].text


def test_slices_bear_their_numbers_in_the_file(tmp_path: Path) -> None:
    ways = (ShortAxisView(), ShortAxisView(flips=(False, False, True)))
    first, second = (report(study_of(stored(view, tmp_path))) for view in ways)
    captions = [[int(n) for n in re.findall(r"<figcaption>slice (\d+)<", html)] for html in (first, second)]
    assert captions[1] == [5 - n for n in captions[0]]  # a stack of four
    assert "slice 4, contours" in second


def test_checks_look_along_the_slices(tmp_path: Path) -> None:
    """A ventricle open to one side in one slice, and a hole between slices, stored with the slices first."""
    views = (ShortAxisView(), ShortAxisView((2, 0, 1), (True, False, False)))
    qualities = []
    for view in views:
        segmentation = stored(view, tmp_path)
        mask = view.undo(segmentation.mask).copy()
        mask[..., 1][mask[..., 1] == 1] = 0
        qualities.append(study_of(replace(segmentation, mask=view.apply(mask))).result().quality)
    reasons = [[f.reason for f in quality.findings if f.check == "missing slices"] for quality in qualities]
    assert reasons[0] == ["frame 1: RV is absent from slice 2 between slices that hold it"]
    assert reasons[1] == [
        "frame 1: RV is absent from slice 3 between slices that hold it"
    ]  # counted from the other end
    assert [finding.check for finding in qualities[0].findings] == [finding.check for finding in qualities[1].findings]


@pytest.mark.parametrize(("count", "folded"), [(0, 0), (3, 0), (4, 2), (13, 11)])
def test_many_reasons_are_folded_in_a_cohort(count: int, folded: int, tmp_path: Path) -> None:
    result = study_of(stored(ShortAxisView(), tmp_path)).result()
    texts = [f"reason {n} & more" for n in range(count)]
    result = StudyResult("a", result.volumes, Quality(tuple(Finding("x", text) for text in texts)))
    html = cohort_report([result], ORIGIN)
    page = Page(html)
    assert references(html) == []
    assert all(text in page.text for text in texts)
    assert (f"and {folded} more" in page.text) == (folded > 0)
    hidden = html.partition("<details>")[2].partition("</details>")[0]
    assert hidden.count("<li>") == folded
    assert all(text in Page(case_report(result, {}, ORIGIN)).text for text in texts)


def test_settings_are_spoken(tmp_path: Path) -> None:
    settings = {"staple": False, "keep_largest": True, "guidance_interval": [0, 500], "guidance_scale": 0.0, "x": None}
    text = Page(cohort_report([], replace(ORIGIN, settings=settings))).text
    assert "staple no keep largest yes guidance interval 0 to 500 guidance scale 0.0 x none" in text


def test_a_name_too_long_for_the_chart_is_there_to_hover() -> None:
    name = "a_site_with_a_long_name/and_a_patient"
    chart = ejection_chart([(name, Estimate(50.0)), ("short", Estimate(40.0))])
    assert chart.count("<title>") == 1
    assert f"<title>{name}</title>a_site_with_a_long_name/a…" in chart
