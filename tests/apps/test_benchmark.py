"""The benchmark program: claims, the page, and a quick run of the parts that take seconds."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import REPO
from small_resolver import small_unet

sys.path.insert(0, str(REPO))

from benchmarks import contestants, distributed, efficiency, face_sr, memory, nnunet, peer, sampling_scores
from benchmarks.__main__ import main
from benchmarks.harness import Claim, Journal, alternate, ratio
from benchmarks.render import MISSING, render, section, show
from benchmarks.scale import fit
from benchmarks.validation import difference
from cgdpm_med import SuperResolver
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ResidualTarget
from cgdpm_med.models import describe, save_model
from cgdpm_med.models.description import PictureInput


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("claim", "passed"),
    [
        (Claim("a", 3.0, 3.0), True),
        (Claim("a", 2.99, 3.0), False),
        (Claim("a", 0.3, 0.3, at_most=True), True),
        (Claim("a", 0.31, 0.3, at_most=True), False),
        (Claim("a", float("nan"), 0.3, at_most=True), False),
        (Claim("a", 1.0), None),
    ],
)
def test_a_claim_is_held_against_its_target(claim: Claim, passed: bool | None) -> None:
    assert claim.passed is passed


def test_a_ratio_is_the_median_of_the_repeats() -> None:
    claim = ratio("a", [2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    assert (claim.value, claim.spread) == (3.0, (2.0, 4.0))


def test_contestants_take_turns() -> None:
    order: list[str] = []
    times = alternate({name: partial(order.append, name) for name in "ab"}, repeats=2)
    assert order == list("ababab")
    assert [len(t) for t in times.values()] == [2, 2]


def test_contestants_may_be_timed_by_another_clock() -> None:
    ticks = iter(range(100))
    times = alternate({"a": lambda: None}, repeats=2, clock=lambda: float(next(ticks)))
    assert times == {"a": [1.0, 1.0]}


def test_mirror_images_are_turned_back() -> None:
    """Brightness alone is the same in every mirror image; where a pixel lies is not."""
    y = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nnunet.mirrored(torch.nn.ReLU(), y, low=False), y)
    lefter = torch.cumsum(torch.ones(4, 6), dim=1)
    found = nnunet.mirrored(Added(lefter), torch.zeros(2, 1, 4, 6), low=False)
    torch.testing.assert_close(found, torch.full_like(found, 3.5))


class Added(torch.nn.Module):
    """Adds a picture."""

    def __init__(self, picture: torch.Tensor) -> None:
        super().__init__()
        self.picture = picture

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.picture


def test_five_folds_cost_five_times_one() -> None:
    times = {nnunet.OURS: [1.0, 2.0], nnunet.OLD: [4.0, 8.0], "float32": [2.5, 5.0], "bfloat16": [2.0, 4.0]}
    found = {claim.name: (claim.value, claim.target) for claim in nnunet.claims(times)}
    assert list(found.values()) == [(0.25, 0.4), (0.4, 0.5), (pytest.approx(0.08), 0.1), (0.5, None), (0.1, None)]


def test_a_setting_is_scored_over_volumes_and_patients() -> None:
    rows = {"version 0.1": {"cpu_seconds": 10.0}, "new": {"cpu_seconds": 3.0}}
    assert [(c.name, c.value, c.passed) for c in sampling_scores.claims(rows)] == [
        ("new / version 0.1, CPU seconds", 0.3, True)
    ]
    assert sampling_scores.claims({"new": rows["new"]}) == []


def test_a_straight_line_is_found() -> None:
    slope, offset, r2 = fit([1, 2, 4], [5, 7, 11])
    assert (slope, offset, r2) == pytest.approx((2, 3, 1))
    assert fit([0, 1, 2, 3], [0, 1, 0, 1])[2] == pytest.approx(0.2)


def test_the_networks_are_of_one_size() -> None:
    ours, theirs = contestants.shipped_unet(), contestants.monai_unet(3)
    cost = peer.costs(ours, theirs, torch.zeros(1, 3, 128, 128))
    assert cost["largest difference"] < 0.1
    assert cost["flops once"] < cost["flops"][0]


def test_a_network_of_another_size_is_refused() -> None:
    other = contestants.monai_unet(3)
    other.register_parameter("ballast", torch.nn.Parameter(torch.zeros(2_000_000)))
    with pytest.raises(RuntimeError, match="differ"):
        peer.costs(contestants.shipped_unet(), other, torch.zeros(1, 3, 128, 128))


def test_flops_of_the_convolutions_are_nearly_all() -> None:
    network = contestants.shipped_unet()
    y = torch.zeros(1, 3, 64, 64)
    features = network.encode(y)
    counted = contestants.flops(lambda: network(torch.zeros(2, 4, 64, 64), torch.zeros(1), features))
    assert 0.95 * counted < sum(efficiency.convolutions(network, 2, 64).values()) < counted


def test_the_rungs_of_the_ladder_give_one_result() -> None:
    network = contestants.shipped_unet()
    y = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, t = torch.randn(6, 4, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([7])
    once, nothing = peer.BranchOnce(network), peer.NothingOnce(network)
    with torch.no_grad():
        expected = network(x, t, network.encode(y))
        torch.testing.assert_close(once(x, t, once.encode(y)), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(nothing(x, t, y.repeat_interleave(3, dim=0)), expected, rtol=1e-4, atol=1e-4)


def test_a_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    assert Journal(path, {"steps": 4}).get("a", lambda: 1) == 1
    assert Journal(path, {"steps": 4}).get("a", lambda: 2) == 1
    assert Journal(path, {"steps": 5}).get("a", lambda: 2) == 2


def test_paired_differences() -> None:
    a, b = ([{"dice": value} for value in values] for values in ([90.0, 80.0, 85.0], [89.0, 80.0, 83.0]))
    mean, error = difference(a, b)
    assert (mean, error) == pytest.approx((1.0, 1 / 3**0.5))


PAGE = """Before.

<!-- holds -->
stale
<!-- end -->

Between.

<!-- fails -->
<!-- end -->
"""


def written(folder: Path) -> None:
    claims = [
        {
            "name": "fast",
            "value": 3.456,
            "target": 3.0,
            "spread": [3.1, 3.9],
            "at_most": False,
            "unit": "x",
            "passed": True,
        },
        {"name": "small", "value": 0.4, "target": 0.3, "spread": None, "at_most": True, "unit": "", "passed": False},
        {"name": "told", "value": None, "target": None, "spread": None, "at_most": False, "unit": "", "passed": None},
    ]
    place = {"processor": "A CPU", "threads": 2, "gpu": None, "versions": {"torch": "2.9"}}
    table = {"title": "Times", "columns": ["what", "seconds"], "rows": [["ours", "1.5"]]}
    document = {"claims": claims, "tables": [table], "environment": place, "settings": {"steps": 4}, "repeats": 5}
    document["notes"] = ["Beside another job."]
    (folder / "speed.json").write_text(json.dumps(document), encoding="utf-8")


def test_the_page_is_filled_from_the_files(tmp_path: Path) -> None:
    folder, page = tmp_path / "results", tmp_path / "page.md"
    for machine in ("amd", "gpu", "other", "quick"):
        (folder / machine).mkdir(parents=True)
        written(folder / machine)
    page.write_text(PAGE, encoding="utf-8")
    text = render(folder, page)
    value = "3.46x (3.1 … 3.9)"
    assert "| benchmark | what | target | AMD | Xeon | H200 | other |" in text
    assert f"| `speed` | fast | at least 3x | {value} |  | {value} | {value} |" in text
    assert "| AMD | `speed` | small | at most 0.3 | 0.4 | **no reason given yet** |" in text
    assert "| other | `speed` | small |" in text
    assert "told" not in text
    assert "quick" not in text
    assert "stale" not in text
    assert all(prose in text for prose in ("Before.", "Between."))
    (tmp_path / "reasons.json").write_text('{"amd/speed: small": "It is large."}', encoding="utf-8")
    again = render(folder, page)
    assert again == page.read_text(encoding="utf-8")
    assert again == text.replace("**no reason given yet**", "It is large.", 1)


def test_a_result_is_shown_in_full(tmp_path: Path) -> None:
    written(tmp_path)
    text = show(tmp_path)
    assert text == "## speed\n\n" + section(json.loads((tmp_path / "speed.json").read_text(encoding="utf-8")))
    assert "| told | never |  |  |" in text
    assert "| ours | 1.5 |" in text
    assert "A CPU, 2 thread(s); torch 2.9. Settings: steps 4. Median of 5 alternating repeats." in text
    assert text.endswith("Beside another job.")


def test_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    """Every missed target has its reason, and nothing was written by hand."""
    source, page = REPO / "benchmarks" / "README.md", tmp_path / "README.md"
    for name in ("README.md", "reasons.json"):
        shutil.copy(source.with_name(name), tmp_path)
    assert render(REPO / "benchmarks" / "results", page) == source.read_text(encoding="utf-8")
    assert MISSING not in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe", "training", "precision"])
def test_a_quick_run_leaves_its_numbers(name: str, tmp_path: Path) -> None:
    assert main([name, "--quick", "--threads", "1", "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "quick" / f"{name}.json").read_text(encoding="utf-8"))
    assert document["quick"] is True
    assert document["environment"]["threads"] == 1
    assert document["claims"]
    for claim in document["claims"]:
        assert claim["value"] is not None
    seconds = document["raw"]["seconds"]
    assert all(len(times) == 1 and times[0] > 0 for times in seconds.values())


def small_face_network(path: Path) -> Path:
    """A model file of faces eight times finer, from random weights."""
    target = ResidualTarget(3, 8, scale=2.7)
    schedule = NoiseSchedule(prediction_type="sample")
    described = describe(small_unet(cond_scale=8), target=target, schedule=schedule, input=PictureInput(window=128))
    save_model(path, small_unet(cond_scale=8), described)
    return path


def test_faces_are_told_by_steps_with_their_doubt(tmp_path: Path) -> None:
    words = ["face_sr", "--quick", "--weights", str(small_face_network(tmp_path / "model.pt"))]
    words += ["--noise", "0.5", "--noise-steps", "2"]
    assert main([*words, "--output", str(tmp_path), "--plot", str(tmp_path / "curve.png")]) == 0
    document = json.loads((tmp_path / "quick" / "face_sr.json").read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in document["tables"][0]["rows"]}
    assert list(rows) == ["bicubic", "1 step", "2 steps", "2 steps, noise 0.5"]
    assert rows["2 steps, noise 0.5"][0] != rows["2 steps"][0]
    assert rows["1 step"][2] < 0.1 < rows["bicubic"][2]  # made to agree with the coarse picture, up to 8 bits of files
    told = {claim["name"]: claim["value"] for claim in document["claims"]}
    assert told["1 step: psnr"] == rows["1 step"][0]
    assert told["2 steps, noise 0.5: psnr"] == rows["2 steps, noise 0.5"][0]
    doubt = "doubt and error of 2 pictures: "
    assert -1 <= told[f"{doubt}correlation of pixels"] <= 1
    assert 0 <= told[f"{doubt}AUROC of the largest 10%"] <= 1


def test_faces_that_choose_settings_are_those_that_a_training_holds_out(tmp_path: Path) -> None:
    folders = [tmp_path / "many", tmp_path / "few"]
    for folder in folders:
        folder.mkdir()
        face_sr.draw_pictures(folder, 3)
    arguments = Namespace(held_out=1, held_out_of=["few"], size=128)
    assert [item["key"] for item in face_sr.pictures_of(arguments, folders)] == ["few/1.png"]
    assert len(face_sr.pictures_of(Namespace(held_out=None), folders)) == 6


def test_pictures_of_another_bundle_are_held_against_interpolation() -> None:
    rows = {"bicubic": {"psnr": 22.0}, "1 step": {"psnr": 23.5}}
    (gain,) = face_sr.gains(rows)
    assert (gain.name, gain.value, gain.target) == ("1 step: PSNR above bicubic", 1.5, None)


def test_the_default_steps_are_the_bundles(tmp_path: Path) -> None:
    weights = str(small_face_network(tmp_path / "model.pt"))
    resolver = SuperResolver.from_bundle(face_sr.BUNDLE, weights=weights, device="cpu")
    assert resolver.predictor.sampling.steps == face_sr.DEFAULT_STEPS


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    alone, together = distributed.both(iterations=2, batch=4)
    moved = distributed.difference(distributed.fresh().state_dict(), alone)
    assert moved > 1e-3
    assert distributed.difference(alone, together) < 1e-4 * moved


@pytest.mark.filterwarnings("ignore:Memory block of unknown size")
def test_tensors_are_counted_to_the_byte() -> None:
    """Two of 4 MB at once, then two more after one of them is gone; what was there before does not count."""
    before = torch.zeros(1000, 1000)
    with memory.Tensors() as meter:
        first = torch.empty(2**20)
        second = torch.empty(2**20)
        del first, before
        third = torch.empty(2**19)
    assert meter.peak == 8
    assert second.numel() == 2 * third.numel()
