"""Tensors by name in a file: written, read, refused, and told apart by a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.files import InputError, archive_damage, atomic_write, read_failure

TENSORS, DESCRIPTION = "model", "description"
"""Entries of a model file. ``model`` is where MONAI's and ignite's loaders look for the tensors."""

Tensors = Mapping[str, Tensor]


def read_content(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a weights file and its description, which is None in files of version 0.1.

    Raises:
        InputError: when the file is missing, damaged, or holds something else. Nothing in it is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there are no weights here", path=path, remedy="Train them, or give another file")
    _check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"is not a file of plain weights ({type(error).__name__})",
            path=path,
            remedy="Save a state_dict with torch.save; files that would run code are refused",
        ) from error
    described = isinstance(content, dict) and content.keys() == {TENSORS, DESCRIPTION}
    tensors, description = (content[TENSORS], content[DESCRIPTION]) if described else (content, None)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(
            "holds something else than a state_dict", path=path, remedy="Save model.state_dict() with torch.save"
        )
    return tensors, description


def _check_whole(path: Path) -> None:
    try:
        damage = archive_damage(path)
    except OSError as error:
        raise read_failure(path, error) from error
    if damage is not None:
        raise InputError(damage, path=path, remedy="Download or copy it again")


def place_tensors(network: nn.Module, tensors: Tensors, path: str | Path) -> None:
    """Load them into a network, cast to its precision.

    Raises:
        InputError: when they belong to another network; the first differing names are listed.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        details = ", ".join(
            f"{name} (network {wanted.get(name, 'has none')}, file {found.get(name, 'has none')})"
            for name in differing[:3]
        )
        raise InputError(
            f"belongs to another network: {len(differing)} of {len(wanted)} tensors differ, first {details}",
            path=path,
            remedy="Use the configuration the weights were trained with",
        )
    network.load_state_dict(tensors)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Read the tensors of a model file, or a plain state_dict, into ``model`` and return it.

    Raises:
        InputError: when the file is missing, is no file of weights, or belongs to another network.
    """
    place_tensors(model, read_content(path)[0], path)
    return model


def save_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a plain state_dict atomically, floating-point tensors in ``dtype`` if given (float16 halves the file)."""
    with atomic_write(path) as file:
        torch.save(tensors_of(model, dtype), file)


def tensors_of(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state_dict, floating-point tensors in ``dtype`` if given."""
    return {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


def rounded(tensors: Tensors, dtype: torch.dtype, path: str | Path) -> dict[str, Tensor]:
    """Floating-point tensors in half precision, the others as they are.

    Args:
        path: of the file they are for, which an error names.

    Raises:
        InputError: for a tensor with values beyond what ``dtype`` holds.
        ValueError: unless ``dtype`` is torch.float16 or torch.bfloat16.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"weights are rounded to torch.float16 or torch.bfloat16, not {dtype}")
    found = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if lost := [name for name in tensors if bool((found[name].isfinite() != tensors[name].isfinite()).any())]:
        what = f"{lost[0]} has values beyond what {dtype} holds"
        raise InputError(what, path=path, remedy="Save them in bfloat16, or in full precision")
    return found


# --- digests ----------------------------------------------------------------------------------------------------------


def digest_of(tensors: Tensors) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names, as 64 hexadecimal digits.

    It stays when the same tensors are written again, with another description or by another version of PyTorch.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(path: str | Path) -> str:
    """:func:`digest_of` the tensors in a file; of weights of another kind, SHA-256 of the file.

    A file that has not changed is read once.

    Raises:
        InputError: when there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there are no weights here", path=path, remedy="Train them, or give another file")
    state = path.stat()
    return _digest_of_file(path.resolve(), state.st_size, state.st_mtime_ns)


def digests_by_name(weights: Sequence[Path]) -> dict[str, str]:
    """Digest of the tensors of every file; of several with one name, as folds have, the later ones bear a number."""
    found: dict[str, str] = {}
    for number, file in enumerate(weights, start=1):
        found[f"{file.name} ({number})" if file.name in found else file.name] = weights_digest(file)
    return found


@lru_cache(maxsize=64)
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    try:
        return digest_of(read_content(path)[0])
    except InputError:
        return sha256_of(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
