"""The shipped weights give one mask, whichever way they are run: by the command line, or by the bundle's evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REPO
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from cgdpm_med import write_phantom_dataset
from cgdpm_med.apps.cli import app

BUNDLE = REPO / "bundles" / "acdc_segmentation"
TEST = 11  # a phantom that bears the number of a test patient of ACDC takes its place in the split


pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


@pytest.mark.slow
def test_the_command_and_the_evaluation_give_equal_masks(tmp_path: Path) -> None:
    phantoms = tmp_path / "phantoms"
    write_phantom_dataset(phantoms, [TEST], seed=3, shape=(72, 64, 3), spacing=(2.4, 2.4, 24.0), num_frames=6)
    command = ["segment", str(phantoms), str(tmp_path / "command"), "--members", "2", "--steps", "2", "--no-report"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output

    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("inference", "evaluate", "keep_masks")]
    flow = ConfigWorkflow(
        files,
        str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path / "bundle"),
        members=2,
        steps=2,
    )
    flow.initialize()
    flow.run()

    for frame in (1, 3):
        name = f"patient{TEST:03d}_frame{frame:02d}"
        by_command = nib.load(tmp_path / "command" / f"patient{TEST:03d}" / f"{name}.nii.gz")
        by_bundle = nib.load(tmp_path / "bundle" / "masks" / f"{name}.nii.gz")
        mask = np.asarray(by_command.dataobj)
        assert set(np.unique(mask)) == {0, 1, 2, 3}  # the weights find a heart: equality says something
        assert np.array_equal(mask, np.asarray(by_bundle.dataobj))
        assert np.array_equal(by_command.affine, by_bundle.affine)
        kept, written = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for folder in (tmp_path / "bundle" / "masks", tmp_path / "command" / f"patient{TEST:03d}")
        )
        for measured in ("volume_ml", "member_volume_ml"):
            assert kept[measured] == written[measured]
