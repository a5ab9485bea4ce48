"""One model from several of one ancestor: the average of their weights, at the cost of one network.

python scripts/average_weights.py MODEL.pt denoiser/model.pt further/second.pt
python scripts/average_weights.py MODEL.pt A.pt B.pt --learned DISTILLED.pt A.pt

Networks that were trained on from the same weights often lie in one valley, and their average is better than each of
them (Wortsman et al., 2022, https://arxiv.org/abs/2203.05482). Networks from other random weights do not.

``--learned NETWORK FROM`` adds what NETWORK has learned since FROM (Ilharco et al., 2023,
https://arxiv.org/abs/2212.04089): what distillation taught one of them, without teaching it again. The file is then of
a distilled network, whose teacher is the average. Whether either helps is to be measured on validation patients.
A file that is named n times counts n times. Written in half precision, as scripts/round_weights.py does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cgdpm_med import load_model, save_model
from cgdpm_med.files import InputError
from cgdpm_med.models.description import ModelDescription, TrainingData
from cgdpm_med.models.rebuild import described
from cgdpm_med.models.weights import Tensors, digest_of, rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", type=Path, nargs="+", help="model files of one architecture and input")
    parser.add_argument("--learned", type=Path, nargs=2, metavar=("NETWORK", "FROM"))
    arguments = parser.parse_args()
    try:
        average_files(arguments.target, arguments.sources, arguments.learned)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")


def average_files(target: Path, sources: Sequence[Path], learned: Sequence[Path] | None = None) -> None:
    """Write the average of ``sources``, and what was ``learned`` from the second of two files to the first.

    Raises:
        InputError: for files that are no models, of different networks or splits, distilled where they must not be, or
            one of which is ``target``.
    """
    files = [*sources, *(learned or ())]
    if any(path.resolve() == target.resolve() for path in files):
        raise InputError("is one of the files to average", path=target, remedy="Give another place for the result")
    models = [read_model(path) for path in sources]
    others = [read_model(path) for path in learned or ()]
    for path, (_, said) in zip(files, [*models, *others], strict=True):
        check_alike(models[0][1], said, path)
    undistilled = [*zip(sources, models, strict=True), *list(zip(learned or (), others, strict=True))[1:]]
    if distilled := [path for path, (_, said) in undistilled if said.walk]:
        remedy = "Average denoisers, and give a distilled network as the first of --learned"
        raise InputError("is a distilled network", path=distilled[0], remedy=remedy)
    tensors = average([tensors for tensors, _ in models])
    said = replace(models[0][1], training=seen_by([said for _, said in models]))
    said = replace(said, precision="float32", rounded_from=None)
    if others:
        (after, of_after), (before, _) = others
        teacher = digest_of(rounded(tensors, torch.float16, target))
        tensors = {name: tensors[name] + after[name] - before[name] for name in tensors}
        said = replace(said, walk=of_after.walk, teacher=teacher if of_after.walk else None)
        said = replace(said, training=seen_by([said, of_after]))
    save_model(target, tensors, said, torch.float16)


def check_alike(first: ModelDescription, other: ModelDescription, path: Path) -> None:
    """Raise InputError unless their weights mean the same."""
    different = first.differences(other)
    different += ["network"] if other.network != first.network else []
    seen, also = first.training, other.training
    different += ["split"] if seen is not None and also is not None and seen.split != also.split else []
    if different:
        what = f"has another {different[0]} than the first file"
        raise InputError(what, path=path, remedy="Give networks that were trained on from the same weights")


def average(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """Name by name, in float64."""
    return {name: torch.stack([m[name].double() for m in models]).mean(dim=0).float() for name in models[0]}


def seen_by(said: Sequence[ModelDescription]) -> TrainingData | None:
    """The patients that any of them has seen; None where one does not say."""
    training = [each.training for each in said if each.training is not None]
    if len(training) < len(said):
        return None
    return TrainingData(tuple({patient for each in training for patient in each.patients}), training[0].split)


def read_model(path: Path) -> tuple[Tensors, ModelDescription]:
    """Tensors in float32, and what the file says of them; an argument that an older file left out is named."""
    model = load_model(path)
    return model.network.state_dict(), replace(model.description, network=described(model.network))


if __name__ == "__main__":
    main()
