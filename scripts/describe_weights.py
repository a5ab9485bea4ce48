"""Writes weights of version 0.1, plain state_dicts, again as model files that say what they are.

python scripts/describe_weights.py bundles/acdc_segmentation/models --description \
    bundles/acdc_segmentation/configs/version_0_1.json

The tensors stay as they are, bit for bit. A split.json beside model.pt gives the training patients, guidance.pt becomes
that of the denoiser beside it, and a calibration.json is bound to the digests of the tensors in place of the files'.
Files that say already what they are stay untouched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgdpm_med import guidance_beside, save_model
from cgdpm_med.evaluation.training_patients import SPLIT_FILE, split_digest
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.models import ModelDescription
from cgdpm_med.models.description import TrainingData, as_guidance, read_description
from cgdpm_med.models.files import completed, load_model
from cgdpm_med.models.weights import digest_of, read_content, weights_digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds model.pt")
    parser.add_argument("--description", type=Path, required=True, help="JSON: what the files are")
    arguments = parser.parse_args()
    try:
        for path in describe_folder(arguments.folder, read_description(arguments.description)):
            print(f"{path}: {weights_digest(path)}")
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def describe_folder(folder: Path, description: ModelDescription) -> list[Path]:
    """Write the files of a folder again; those that were."""
    denoiser = folder / "model.pt"
    guide = guidance_beside(denoiser)
    before = {path: file_digest(path) for path in (denoiser, guide) if path.is_file()}
    known = replace(completed(description, folder), training=training_of(folder))
    written = [denoiser] if describe_weights(denoiser, known) else []
    if guide.is_file() and describe_weights(guide, as_guidance(known, weights_digest(denoiser))):
        written.append(guide)
    load_model(denoiser)
    if (calibration := folder / "calibration.json").is_file():
        rebind(calibration, {digest: weights_digest(path) for path, digest in before.items()})
    return written


def describe_weights(path: Path, description: ModelDescription) -> bool:
    """Whether the file was written again."""
    tensors, said = read_content(path)
    if said is not None:
        return False
    save_model(path, tensors, description)
    if digest_of(read_content(path)[0]) != digest_of(tensors):
        raise RuntimeError(f"{path} holds other tensors than before")
    return True


def training_of(folder: Path) -> TrainingData | None:
    """From the record of the run."""
    record = folder / SPLIT_FILE
    if not record.is_file():
        return None
    seen = json.loads(record.read_text(encoding="utf-8"))["trained_on"]
    return TrainingData(tuple(seen), split_digest(record))


def rebind(calibration: Path, digests: dict[str, str]) -> None:
    """Name the weights by the digests of their tensors."""
    content: dict[str, Any] = json.loads(calibration.read_text(encoding="utf-8"))
    content["weights"] = {name: digests.get(digest, digest) for name, digest in content["weights"].items()}
    with atomic_write(calibration) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
