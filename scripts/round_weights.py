"""Writes a model file again in half precision: 9.6 million parameters take 19 MB.

python scripts/round_weights.py RUN/model.pt bundles/face_sr_16_128/models/model.pt
python scripts/round_weights.py RUN/model.pt model.pt --input '{"shows": "single faces that fill the picture"}'

Read, the tensors are float32 again. A guidance network that was trained on the file before guides it afterwards too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cgdpm_med import save_model
from cgdpm_med.files import InputError
from cgdpm_med.models import ModelDescription
from cgdpm_med.models.weights import read_content

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a model file, of a denoiser or a guidance network")
    parser.add_argument("target", type=Path)
    parser.add_argument("--precision", choices=DTYPES, default="float16", help="float16 rounds less")
    parser.add_argument("--input", type=json.loads, default={}, help="fields of the input to say otherwise, as JSON")
    arguments = parser.parse_args()
    try:
        round_file(arguments.source, arguments.target, DTYPES[arguments.precision], arguments.input)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")


def round_file(source: Path, target: Path, dtype: torch.dtype, said_of_input: Mapping[str, Any] | None = None) -> None:
    """The same model with rounded tensors.

    Args:
        said_of_input: fields of the description's input that say more than the training did.

    Raises:
        InputError: for a file that is no model file, or values beyond what ``dtype`` holds.
    """
    tensors, said = read_content(source)
    if said is None:
        remedy = "Write it as a model file first, with scripts/describe_weights.py"
        raise InputError("does not say what it is", path=source, remedy=remedy)
    said = {**said, "input": {**said["input"], **(said_of_input or {})}}
    save_model(target, tensors, ModelDescription.from_dict(said, source), dtype)


if __name__ == "__main__":
    main()
