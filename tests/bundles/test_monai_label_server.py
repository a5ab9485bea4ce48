"""MONAI Label's own server on the segmentation bundle: masks over HTTP, a training from corrected ones, masks again.

It wants an environment of its own, see docs/integration.md. CGDPM_LABEL_SERVER names its Python:

    CGDPM_LABEL_SERVER=/opt/label/bin/python python -m pytest tests/bundles/test_monai_label_server.py

As the page says: ``start_server --app APPS/monaibundle --studies IN``, ``--conf models`` and so on. The network is
tiny, so that a training takes seconds.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO
from monai.bundle import ConfigParser
from nifti_files import ACDC_SFORM, nifti

from cgdpm_med import Segmenter, read_volume
from cgdpm_med.models import load_model, save_model
from cgdpm_med.models.description import TrainingData
from cgdpm_med.phantom import PhantomSpec, make_phantom

requests = pytest.importorskip("requests")

PYTHON = os.environ.get("CGDPM_LABEL_SERVER", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="CGDPM_LABEL_SERVER names no Python with MONAI Label"),
]
BUNDLE = REPO / "bundles" / "acdc_segmentation"
SETTINGS = {"members": 2, "steps": 2, "precision": "float32"}
SPACING = (2.8, 2.8, 22.0)
PATIENCE = 600  # seconds; a start imports torch and ITK


def of_page(start: str) -> list[str]:
    """The line of docs/integration.md that starts so, as words."""
    text = (REPO / "docs" / "integration.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith(start)]
    return shlex.split(line)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose headers contradict themselves as those of ACDC do: the affine has 1 mm, pixdim the truth."""
    folder = tmp_path_factory.mktemp("studies")
    for seed in (1, 2, 3):
        voxels = make_phantom(PhantomSpec.small(seed=seed)).images[1].astype(np.int16)
        content = nifti(voxels, pixdim=SPACING, sform=ACDC_SFORM, sform_code=2)
        (folder / f"scan{seed}.nii.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with its copy of the bundle, made as the page says, with a tiny network in place of the weights."""
    apps = tmp_path_factory.mktemp("apps")
    shutil.copytree(Path(PYTHON).parents[1] / "monailabel" / "sample-apps" / "monaibundle", apps / "monaibundle")
    copy = apps / "monaibundle" / "model" / "acdc_segmentation"
    shutil.copytree(BUNDLE, copy)
    (copy / "models" / "denoiser" / "model.pt").replace(copy / "models" / "model.pt")
    shutil.rmtree(copy / "models" / "denoiser")
    (copy / "models" / "calibration.json").unlink()
    edit(copy / "configs" / "inference.yaml", **SETTINGS)
    smoke = ConfigParser.load_config_file(REPO / "configs" / "smoke.yaml")
    small = {key: smoke[key] for key in ("channels", "spacing", "field", "crop")}
    edit(copy / "configs" / "train.yaml", **small, ema_momentum=0.5)
    edit(copy / "configs" / "label.yaml", learning_rate=0.05)  # few steps, after which masks shall be others
    subprocess.run([sys.executable, *of_page("python -c")[1:]], check=True, cwd=copy)
    base = ConfigParser()
    base.read_config(str(copy / "configs" / "train.yaml"))
    base["train#dataset#data"] = []
    torch.manual_seed(0)
    network, said = (base.get_parsed_content(name) for name in ("network_def", "description"))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # its last layer begins at zero, and would draw nothing
    save_model(copy / "models" / "model.pt", network, replace(said, training=TrainingData((), "0" * 64)))
    return copy


def edit(path: Path, **settings: object) -> None:
    """Settings at the top of a configuration, as a person edits them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for name, value in settings.items():
        (place,) = [n for n, line in enumerate(lines) if line.startswith(f"{name}:")]
        lines[place] = f"{name}: {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """Of the server, with this checkout to import."""
    return {**os.environ, "PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def server(bundle: Path, studies: Path) -> Iterator[str]:
    """Started as the page says, on a free port of this machine; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = of_page("monailabel start_server")[1:]
    words[words.index("--app") + 1], words[words.index("--studies") + 1] = str(bundle.parents[1]), str(studies)
    place = words.index("skip_trainers") - 1
    del words[place : place + 3]
    command = [PYTHON, "-m", "monailabel.main", *words, "--host", "127.0.0.1", "--port", str(port)]
    with (studies.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, cwd=studies.parent)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(address, process))
        yield address
    finally:
        process.terminate()
        process.wait()
        print((studies.parent / "server.log").read_text(errors="replace")[-8000:])  # noqa: T201


def answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the server ended"
    try:
        return bool(requests.get(f"{address}/info/", timeout=60).ok)
    except requests.ConnectionError:
        return False


def wait_for(done: Callable[[], bool]) -> None:
    """Until it is true."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "the server takes too long"
        time.sleep(1)


def inferred(address: str, image: str, path: Path) -> nib.Nifti1Image:
    """The mask that a viewer gets."""
    answer = requests.post(
        f"{address}/infer/acdc_segmentation", params={"image": image, "output": "image"}, timeout=PATIENCE
    )
    assert answer.ok, answer.text
    path.write_bytes(answer.content)
    return nib.load(path)


def expected(bundle: Path, scan: Path) -> np.ndarray:
    return Segmenter.from_bundle(bundle, device="cpu", **SETTINGS)(read_volume(scan)).mask


def test_masks_training_and_masks_again(server: str, bundle: Path, studies: Path, tmp_path: Path) -> None:
    info = requests.get(f"{server}/info/", timeout=60).json()
    assert list(info["models"]) == ["acdc_segmentation"]
    assert list(info["trainers"]) == ["acdc_segmentation"]
    first = inferred(server, "scan1", tmp_path / "first.nii.gz")
    np.testing.assert_allclose(first.header.get_zooms()[:3], SPACING, rtol=1e-5)
    before = expected(bundle, studies / "scan1.nii.gz")
    assert len(np.unique(before)) > 1
    np.testing.assert_array_equal(np.asarray(first.dataobj), before)

    for seed in (1, 2, 3):  # a reader corrects and submits
        mask = make_phantom(PhantomSpec.small(seed=seed)).labels[1].astype(np.uint8)
        nib.Nifti1Image(mask, first.affine).to_filename(tmp_path / "mask.nii.gz")
        with (tmp_path / "mask.nii.gz").open("rb") as file:
            answer = requests.put(
                f"{server}/datastore/label",
                params={"image": f"scan{seed}", "tag": "final"},
                files={"label": ("mask.nii.gz", file)},
                timeout=60,
            )
        assert answer.ok, answer.text
    wishes = {"max_epochs": 2, "val_split": 0.34, "device": "cpu", "tracking": "None"}
    answer = requests.post(f"{server}/train/acdc_segmentation", json=wishes, timeout=60)
    assert answer.ok, answer.text

    def finished() -> bool:
        status = requests.get(f"{server}/train/", timeout=60).json()["status"]
        assert status not in ("ERROR",)
        return status == "DONE"

    wait_for(finished)
    training = load_model(bundle / "models" / "model.pt").description.training
    assert training is not None
    assert set(training.patients) < {"scan1", "scan2", "scan3"}
    after = expected(bundle, studies / "scan1.nii.gz")
    assert not np.array_equal(before, after)
    again = inferred(server, "scan1", tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), after)
