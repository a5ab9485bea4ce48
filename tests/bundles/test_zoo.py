"""What the checks of MONAI's model zoo ask of a bundle's folder, and ``scripts/eval_metrics.py``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import load_script, shared_path
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out

from cgdpm_med import InputError, bundle_path, list_bundles

BUNDLES = [bundle_path(name) for name in list_bundles()]
SHIPPED = [bundle for bundle in BUNDLES if (bundle / "models" / "model.pt").is_file()]
SECTIONS = (
    "Model",
    "Data",
    "Input and output",
    "Memory",
    "MONAI Bundle Commands",
    "Performance",
    "References",
    "Licence",
)
LARGEST = 25e6  # bytes of a file; larger ones are listed in large_files.yml

pytestmark = pytest.mark.usefixtures("leaves_no_determinism")
each = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
each_shipped = pytest.mark.parametrize("bundle", SHIPPED, ids=lambda bundle: bundle.name)


def metadata(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return content


@each
def test_the_folder_has_what_the_zoo_needs(bundle: Path) -> None:
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "docs/README.md"):
        assert (bundle / name).is_file(), name
    assert [path for path in bundle.rglob("*") if path.is_file() and path.stat().st_size > LARGEST] == []
    assert metadata(bundle)["version"] in metadata(bundle)["changelog"]


@each
def test_metadata_follow_the_schema(bundle: Path, tmp_path: Path) -> None:
    schema = shutil.copyfile(shared_path("reference", "meta_schema_20240725.json"), tmp_path / "schema.json")
    digest = "06954cad2cc5d3784e72077ac76f0fc8"
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema), hash_val=digest)


@each_shipped
def test_the_network_takes_and_gives_what_the_metadata_say(bundle: Path) -> None:
    """As the zoo calls it: the folder and no setting besides."""
    files = (str(bundle / "configs" / name) for name in ("metadata.json", "inference.yaml"))
    verify_net_in_out("network_def", *files, bundle_root=str(bundle))


@each_shipped
def test_applications_find_their_parts(bundle: Path, tmp_path: Path) -> None:
    configs = bundle / "configs"
    settings = {"bundle_root": str(bundle), "dataset_dir": str(tmp_path), "cases": []}
    flow = ConfigWorkflow(str(configs / "inference.yaml"), logging_file=False, workflow_type="infer", **settings)
    flow.initialize()
    assert flow.check_properties() == []


@each_shipped
def test_scores_are_stated(bundle: Path) -> None:
    assert metadata(bundle)["eval_metrics"]


@each_shipped
def test_scores_are_those_of_the_evaluation_that_the_bundle_keeps(bundle: Path) -> None:
    kept = bundle / "docs" / "evaluation.json"
    if not kept.is_file():
        pytest.skip("its evaluation is older than the script: scripts/eval_metrics.py BUNDLE SUMMARY")
    script = load_script("eval_metrics")
    assert metadata(bundle)["eval_metrics"] == script.metrics_of(json.loads(kept.read_text(encoding="utf-8")), kept)


@each
def test_the_readme_has_the_sections_that_readers_of_the_zoo_look_for(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [name for name in SECTIONS if name not in found] == []
    assert len(metadata(bundle)["references"]) <= len(
        re.findall(r"^- ", text.partition("## References")[2], re.MULTILINE)
    )


# --- scores -----------------------------------------------------------------------------------------------------------

MASKS = {"average": {"dice": 0.91683}, "structures": {"RV": {"dice": 0.90661}, "Myo": {"dice": 0.9}}}
PICTURES = {"means": {"output": {"psnr": 27.12347, "ssim": 0.8, "mse": 1.0}, "bicubic": {"psnr": 20.0, "ssim": 0.1}}}
REFINED = {"methods": {"refined": {"psnr": 25.12347, "ssim": 0.8, "lpips": None, "dice": 88.5}, "bicubic": {}}}


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (MASKS, {"mean_dice": 0.9168, "mean_dice_rv": 0.9066, "mean_dice_myo": 0.9}),
        (PICTURES, {"psnr": 27.1235, "ssim": 0.8}),
        ({"raw": {"summary": REFINED}}, {"psnr": 25.1235, "ssim": 0.8, "mean_dice": 0.885}),
    ],
)
def test_scores_come_from_a_measured_file(summary: dict[str, Any], expected: dict[str, float], tmp_path: Path) -> None:
    script = load_script("eval_metrics")
    shutil.copytree(bundle_path("acdc_segmentation") / "configs", tmp_path / "configs")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    before = metadata(tmp_path)
    (tmp_path / "docs").mkdir()
    script.keep(tmp_path, tmp_path / "summary.json")
    (tmp_path / "summary.json").unlink()
    assert script.fill(tmp_path) == expected
    assert metadata(tmp_path) == {**before, "eval_metrics": expected}


def test_another_file_is_refused(tmp_path: Path) -> None:
    script = load_script("eval_metrics")
    for text in ("{}", "no JSON"):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(InputError, match=r"summary\.json"):
            script.keep(tmp_path, tmp_path / "summary.json")


def test_nothing_of_single_patients_is_kept(tmp_path: Path) -> None:
    script = load_script("eval_metrics")
    (tmp_path / "docs").mkdir()
    (tmp_path / "summary.json").write_text(
        json.dumps({**MASKS, "failed": {"patient001": "why"}, "settings": {"seed": 0}})
    )
    script.keep(tmp_path, tmp_path / "summary.json")
    kept = json.loads((tmp_path / "docs" / "evaluation.json").read_text(encoding="utf-8"))
    assert kept == {"settings": {"seed": 0}, **MASKS}
