"""Reports: well-formed pages with nothing from outside, the right numbers, escaped names, no identifiers."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pages import ORIGIN, Page, references
from segmentations import segmentation_of, wobbly

from cgdpm_med.files import InputError
from cgdpm_med.heart.charts import ejection_chart, volume_chart
from cgdpm_med.heart.function import MEASURES, VolumeCurve
from cgdpm_med.inference.quality import Finding, Quality
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import Estimate
from cgdpm_med.phantom import Phantom, PhantomSpec, make_phantom
from cgdpm_med.report.case import case_report
from cgdpm_med.report.cohort import cohort_report
from cgdpm_med.report.pictures import shown_slices, slice_tiles, structure_window
from cgdpm_med.report.rendering import write_report
from cgdpm_med.studies.outputs import Provenance, provenance
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import Volume, read_volume


@pytest.fixture(scope="module")
def drawn() -> Phantom:
    return make_phantom(PhantomSpec.small(seed=4, affine="plain"), cine=True)


@pytest.fixture(scope="module")
def volume(drawn: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """An image whose name, folder and header carry a person's name."""
    path = tmp_path_factory.mktemp("DOE_JANE_19500101") / "DOE_JANE_1.nii.gz"
    image = nib.Nifti1Image(drawn.images[1], np.diag([*drawn.spec.spacing, 1.0]))
    image.header["descrip"] = b"Doe^Jane 1950-01-01"
    image.header["db_name"] = b"DOE_JANE"
    nib.save(image, path)
    return read_volume(path)


@pytest.fixture(scope="module")
def study(drawn: Phantom, volume: Volume) -> Study:
    study = Study("case 1", height=180, weight=80)
    for frame, labels in drawn.labels.items():
        study.add(frame, segmentation_of(wobbly(labels), volume))
    return study


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return case_report(study.result(), study.key_frames(), ORIGIN)


# --- one study --------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(html: str) -> None:
    tags = {tag for tag, _ in Page(html).tags}
    assert references(html) == []
    assert "http" not in html.replace("http-equiv", "")
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "form"})
    policy = next(a["content"] for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_checker_sees_what_it_should() -> None:
    assert references('<p><img src="https://x/y.png"><a href="b.html">b</a></p>') == ["https://x/y.png", "b.html"]
    with pytest.raises(AssertionError):
        Page("<p><b></p>")


def test_the_page_names_nobody(html: str) -> None:
    for part in ("doe", "jane", "1950", "nii"):
        assert part not in Page(html).text.lower()
        assert part not in " ".join(value for _, a in Page(html).tags for n, value in a.items() if n != "src").lower()


def test_the_numbers_are_the_studys(html: str, study: Study, drawn: Phantom) -> None:
    function, text = study.result().function, Page(html).text
    assert function is not None
    for name, measure in MEASURES.items():
        e = function.measures[name]
        row = f"{measure.title} {e.value:.1f} {measure.unit} {e.lower:.1f} to {e.upper:.1f}"
        if measure.indexed:
            row += f" {(e.value or 0) / 2:.1f} {measure.unit}/m² {(e.lower or 0) / 2:.1f} to {(e.upper or 0) / 2:.1f}"
        assert row in text
    assert f"End-diastole is frame 1, end-systole frame {drawn.es_frame}" in text
    assert "Intervals come from the 5 members" in text
    assert "Body surface 2.00 m²" in text


def test_calibrated_intervals_are_called_so(study: Study) -> None:
    result = study.result()
    assert result.function is not None
    widened = replace(result.function, widening={**result.function.widening, "lv_ef": 1.8})
    text = Page(case_report(replace(result, function=widened), {}, ORIGIN)).text
    assert "calibrated 90 % interval" in text
    assert "widened so as to cover the truth" in text
    text = Page(case_report(result, {}, ORIGIN)).text
    assert "calibrated 90 % interval" not in text
    assert "they are not calibrated" in text


def test_the_origin_is_stated(html: str) -> None:
    text = Page(html).text
    assert "cgdpm_med 0.1.0" in text
    assert "seed 7" in text
    assert f"weights model.pt sha256 {'ab' * 32}" in text
    assert "not a medical device" in text


def test_every_slice_has_two_pictures(html: str, study: Study) -> None:
    images = [a for tag, a in Page(html).tags if tag == "img"]
    expected = [
        f"{name}, slice {z + 1}, {what}"
        for what in ("contours", "uncertainty")
        for name, s in study.key_frames().items()
        for z in shown_slices(s)
    ]
    assert [a["alt"] for a in images] == expected


@pytest.mark.parametrize(("finding", "status"), [(None, "Pass"), (Finding("x", "a <b>reason</b> & more"), "Review")])
def test_verdict_and_reasons(study: Study, finding: Finding | None, status: str) -> None:
    result = replace(study.result(), quality=Quality(() if finding is None else (finding,)))
    text = Page(case_report(result, {}, ORIGIN)).text
    assert text.startswith(f"case 1: cardiac segmentation case 1 {status}")
    assert ("a <b>reason</b> & more" in text) == (finding is not None)


def test_names_are_escaped(study: Study) -> None:
    name = '<script>alert("1")</script>'
    origin = Provenance({name: name}, {name: name}, {name: name})
    for html in (
        case_report(replace(study.result(), key=name), {}, origin),
        cohort_report([replace(study.result(), key=name)], origin, title=name, links={name: '"><script>'}),
    ):
        assert "script" not in {tag for tag, _ in Page(html).tags}
        assert name in Page(html).text


def test_a_single_frame_shows_volumes(volume: Volume, drawn: Phantom) -> None:
    single = Study("one")
    single.add(1, segmentation_of(drawn.labels[1][None], volume))
    text = Page(case_report(single.result(), {}, ORIGIN)).text
    assert f"LV {drawn.truth.edv_ml:.1f} ml –" in text
    assert "One member gives no intervals." in text
    assert "ejection" not in text


# --- pictures ---------------------------------------------------------------------------------------------------------


def pixels(address: str) -> NDArray[np.float64]:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(matplotlib.image.imread(io.BytesIO(base64.b64decode(content))))[..., :3].astype(float)


@pytest.fixture
def block(volume: Volume) -> Segmentation:
    """A cavity of 10 x 20 voxels in slice 2 of 4, seen by half of the members."""
    members = np.zeros((2, *volume.data.shape), dtype=np.uint8)
    members[0, 20:30, 10:30, 2] = 3
    found = segmentation_of(members, volume)
    return replace(found, mask=members[0])


def test_contours_lie_where_the_mask_is(block: Segmentation) -> None:
    # a flat image leaves the contours as the only colour: voxels 20 to 30 and 10 to 30 of 64 x 56
    flat = replace(block, volume=replace(block.volume, data=np.ones_like(block.volume.data)))
    (tile,) = [t for t in slice_tiles(flat, (slice(0, 64), slice(0, 56))) if t.index == 2]
    picture = pixels(tile.contours)
    coloured = np.argwhere(np.ptp(picture, axis=2) > 0.3)
    rows, columns, _ = picture.shape
    assert coloured.min(axis=0) / (rows, columns) == pytest.approx([10 / 56, 20 / 64], abs=0.012)
    assert coloured.max(axis=0) / (rows, columns) == pytest.approx([30 / 56, 30 / 64], abs=0.012)


def test_doubt_lies_where_members_differ(block: Segmentation) -> None:
    (tile,) = [t for t in slice_tiles(block, (slice(0, 64), slice(0, 56))) if t.index == 2]
    colour = np.ptp(pixels(tile.doubt), axis=2)
    rows, columns = colour.shape
    inside = np.zeros(colour.shape, dtype=bool)
    inside[round(rows * 11 / 56) : round(rows * 29 / 56), round(columns * 21 / 64) : round(columns * 29 / 64)] = True
    assert colour[inside].min() > 0.3
    assert colour[round(rows * 32 / 56) :].max() < 0.02


def test_slices_with_a_neighbour_on_each_side(block: Segmentation) -> None:
    assert shown_slices(block) == [1, 2, 3]
    empty = replace(block, mask=np.zeros_like(block.mask), members=np.zeros_like(block.members))
    assert shown_slices(empty) == [2]


def test_the_window_is_a_square_around_the_heart(block: Segmentation) -> None:
    # y: 20 voxels of 2.8 mm and 18 mm on both sides: 92 mm, 32.86 voxels, around x 25 and y 20
    assert structure_window([block]) == (slice(9, 41), slice(4, 36))
    empty = replace(block, mask=np.zeros_like(block.mask))
    assert structure_window([empty]) == (slice(0, 64), slice(0, 56))


# --- charts -----------------------------------------------------------------------------------------------------------


def test_the_curve_goes_through_its_values() -> None:
    curve = VolumeCurve((1, 2, 3), lv=tuple(map(Estimate, (100.0, 50.0, 0.0))), rv=tuple(map(Estimate, (0.0,) * 3)))
    page = Page(volume_chart(curve, {"ED": 1, "ES": 3}))
    lines = {a["class"]: a["points"] for tag, a in page.tags if tag == "polyline"}
    points = [tuple(map(float, p.split(","))) for p in lines["line lv"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1))
    grid = {a["y1"] for tag, a in page.tags if tag == "line" and a["class"] == "axis"}
    assert {f"{y0:.1f}", f"{y2:.1f}"} <= grid  # 100 and 0 ml are grid lines
    assert "ED" in page.text
    assert [tag for tag, _ in page.tags if tag == "polygon"] == []


def test_ejection_fractions_are_sorted_and_to_scale() -> None:
    page = Page(ejection_chart([("b", Estimate(50.0, 40.0, 60.0)), ("a", Estimate(25.0)), ("c", Estimate(None))]))
    dots = [float(a["cx"]) for tag, a in page.tags if tag == "circle"]
    (whisker,) = [a for tag, a in page.tags if tag == "line" and a["class"] == "whisker lv"]
    assert page.text.endswith("a b")
    per_point = (dots[1] - dots[0]) / 25
    assert float(whisker["x2"]) - float(whisker["x1"]) == pytest.approx(20 * per_point, abs=0.11)
    assert (float(whisker["x1"]) + float(whisker["x2"])) / 2 == pytest.approx(dots[1], abs=0.11)
    assert ejection_chart([("c", Estimate(None))]) == ""


# --- a cohort and files -----------------------------------------------------------------------------------------------


def test_cohort_page(study: Study) -> None:
    good: StudyResult = replace(study.result(), quality=Quality())
    bad = StudyResult("case 2", good.volumes, Quality((Finding("x", "no beat"),)))
    html = cohort_report([good, bad], ORIGIN, title="Our cohort", links={"case 1": "case_1.html"})
    text = Page(html).text
    assert references(html) == ["case_1.html"]
    assert "Studies 2 Pass 1 Review 1 Median LV EF" in text
    assert "case 2 Review – – – – – no beat" in text
    assert "seed 7" in text


def test_an_empty_cohort_has_a_page() -> None:
    assert "of 0 studies" in Page(cohort_report([], ORIGIN)).text


def test_provenance_hashes_the_weights_and_hides_their_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"abc")
    origin = provenance({"seed": 1}, tmp_path / "model.pt")
    # SHA-256 of "abc", FIPS 180-2 appendix B.1
    assert origin.weights == {"model.pt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert origin.settings == {"seed": 1}
    assert {"cgdpm_med", "python", "torch"} <= set(origin.versions)


def test_a_report_is_written_whole(tmp_path: Path, html: str) -> None:
    path = write_report(html, tmp_path / "new" / "case.html")
    assert path.read_text(encoding="utf-8") == html
    with pytest.raises(InputError):
        write_report(html, tmp_path / "new")
    assert [p.name for p in path.parent.iterdir()] == ["case.html"]
