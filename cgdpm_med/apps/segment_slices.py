"""Images of any data set to masks and doubt, by a network that ``cgdpm-med train`` made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med.console import CaseBar, complain, input_error_behind
from cgdpm_med.data.transforms import CombineMembersd
from cgdpm_med.datasets.loading import Loaded, input_files, load_example, load_image
from cgdpm_med.datasets.prepare import back, prepare
from cgdpm_med.datasets.run import TASK, Run
from cgdpm_med.datasets.split import of_part
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.inferers import SliceEnsembleInferer
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.inference.segmenter import unusable
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.models.files import Model
from cgdpm_med.volumes import write_on_grid

COLOURS = ((0, 0, 0), (230, 80, 70), (70, 130, 240), (80, 190, 90), (240, 190, 60), (160, 90, 200), (80, 200, 200))
"""Of the classes in mask pictures, the background first; further ones repeat."""


@dataclass(frozen=True, eq=False)
class Mask:
    """An image's segmentation, as its file lies.

    Attributes:
        mask: (X, Y, Z) uint8, classes.
        entropy: float32 in [0, 1], of the combined probabilities.
        disagreement: float32, fraction of members outside the majority.
        probabilities: (C, X, Y, Z) float32.
    """

    mask: NDArray[np.uint8]
    entropy: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class SliceSegmenter:
    """Prepares, samples, brings back and combines.

    Args:
        model: with a :class:`~cgdpm_med.models.description.SliceInput`.
        predictor: its network and how members are drawn.
    """

    def __init__(self, model: Model, predictor: DiffusionPredictor, device: torch.device | str = "cpu") -> None:
        self.model, self.device = model, torch.device(device)
        self.predictor = predictor.to(self.device)
        channels = predictor.out_channels
        self.combine = CombineMembersd(num_classes=max(channels, 2), channels=channels)

    @property
    def labels(self) -> list[str]:
        """Names of the classes 1, 2, …."""
        return [label.name for label in self.model.description.labels]

    @torch.inference_mode()
    def __call__(self, loaded: Loaded, key: str) -> Mask:
        """Segment one image; the noise depends on its key and the seed."""
        seen = self.model.input
        bare = replace(loaded, label=None)
        image = prepare(bare, seen, self.predictor.out_channels, multiple=self.model.multiple)["image"]
        infer = SliceEnsembleInferer(neighbours=seen.neighbours)
        keyed = _Keyed(self.predictor, key)
        members = infer(image[None].to(self.device), keyed)[0].cpu()  # type: ignore[arg-type]
        combined = self.combine({"pred": back(members, loaded, seen, self.predictor.out_channels)})

        def stored(name: str) -> NDArray[Any]:
            return np.ascontiguousarray(loaded.view.undo(torch.as_tensor(combined[name]).numpy()))

        return Mask(stored("mask")[0], stored("entropy")[0], stored("disagreement")[0], stored("probabilities"))


class _Keyed:
    """A predictor whose noise is that of one image, whatever place it has in a batch."""

    def __init__(self, predictor: DiffusionPredictor, key: str) -> None:
        self.predictor, self.key = predictor, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def ensemble(self, image: torch.Tensor, keys: Sequence[str], **how: Any) -> torch.Tensor:
        """As the predictor's."""
        return self.predictor.ensemble(image, keys=[f"{self.key}/{key}" for key in keys], **how)


def is_run(bundle: str | Path) -> bool:
    """Whether a bundle is one that ``cgdpm-med train`` wrote."""
    return (Path(bundle) / TASK).is_file()


def load_segmenter(run: str | Path, **overrides: Any) -> SliceSegmenter:
    """Of a run, with keys of its ``configs/inference.yaml`` set.

    Raises:
        InputError: for an unknown key, or weights that are missing or do not fit.
    """
    from monai.bundle import ConfigParser

    config = Path(run) / "configs" / "inference.yaml"
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
        parser["bundle_root"] = str(run)
        for name, value in overrides.items():
            if name not in parser:
                remedy = "Leave it out; it is for other bundles"
                raise InputError(f"the configuration has no key {name!r}", path=config, remedy=remedy)
            parser[name] = value
        segmenter: SliceSegmenter = parser.get_parsed_content("segmenter")
    except InputError:
        raise
    except Exception as error:  # MONAI wraps whatever a configuration raises
        raise input_error_behind(error) or unusable(config, error) from error
    return segmenter


def segment_folder(segmenter: SliceSegmenter, source: str | Path, out: str | Path) -> dict[str, Any]:
    """Segment every image; a bad one is reported and the others go on.

    A volume gets ``NAME.nii.gz`` and ``NAME_entropy.nii.gz``; a picture ``NAME.png``, its classes as a palette,
    ``NAME_doubt.png``, the entropy from black to white, and ``NAME_doubt.npz`` with entropy, disagreement and
    probabilities. ``labels.json`` names the classes.

    Returns:
        ``cases``: files of each image, and the share of its pixels in each class; ``failed``: errors by name.
    """
    out, cases, failed = Path(out), [], {}
    found = input_files(Path(source))
    if any(out.resolve() == path.resolve().parent for files in found.values() for path in files):
        raise InputError("holds the images themselves", path=out, remedy="Give another output folder")
    channels = len(segmenter.model.input.names)
    with CaseBar("segmenting", list(found)) as bar:
        for key, files in found.items():
            try:
                loaded = load_image(files, channels)
                mask = segmenter(loaded, key)
                written = _save(mask, loaded, out, key)
            except InputError as error:
                failed[key] = str(error)
                complain(error, bar)
            else:
                cases.append({"case": key, "files": written, "share": _shares(mask.mask, segmenter.labels)})
            bar.update(key, 1.0)
    _write_json(out / "labels.json", {"background": 0, **{name: n for n, name in enumerate(segmenter.labels, 1)}})
    return {"cases": cases, "failed": failed, "skipped": []}


def _shares(mask: NDArray[np.uint8], labels: Sequence[str]) -> dict[str, float]:
    return {name: float(np.mean(mask == n)) for n, name in enumerate(labels, start=1)}


def _save(mask: Mask, loaded: Loaded, out: Path, key: str) -> list[str]:
    if loaded.grid is not None:
        paths = [out / f"{key}.nii.gz", out / f"{key}_entropy.nii.gz"]
        write_on_grid(mask.mask, loaded.grid, paths[0])
        write_on_grid(mask.entropy, loaded.grid, paths[1], dtype=np.float32)
        return [str(path) for path in paths]
    paths = [out / f"{key}.png", out / f"{key}_doubt.png", out / f"{key}_doubt.npz"]
    _write_png(Image.fromarray(mask.mask[..., 0]), paths[0], palette=True)
    _write_png(Image.fromarray((255 * mask.entropy[..., 0]).round().astype(np.uint8)), paths[1])
    maps = {name: getattr(mask, name)[..., 0] for name in ("entropy", "disagreement", "probabilities")}
    with atomic_write(paths[2]) as file:
        np.savez_compressed(file, **maps)
    return [str(path) for path in paths]


def _write_png(image: Image.Image, path: Path, palette: bool = False) -> None:
    if palette:
        image.putpalette([value for n in range(256) for value in COLOURS[n and (n - 1) % (len(COLOURS) - 1) + 1]])
    content = io.BytesIO()
    image.save(content, "PNG")
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode())


# --- scores -----------------------------------------------------------------------------------------------------------


def evaluate_part(
    segmenter: SliceSegmenter, run: str | Path, source: str | Path, part: str, out: str | Path
) -> dict[str, Any]:
    """Dice of each class on one part of a run's split, on the images' own pixels; written as ``PART.json``.

    Of an image the Dice of a class is that of :func:`~cgdpm_med.metrics.masks.dice_per_structure`; an image and a
    prediction without the class score 1 and are counted in ``empty``.

    Raises:
        InputError: the part is unknown or empty, or its files changed.
    """
    task = Run(Path(run), Path(source))
    if part not in task.parts or not task.parts[part]:
        raise InputError(f"has no patients in part {part!r}", path=Path(run), remedy="Choose train, validation or test")
    numbers = range(1, task.classes)
    scores, rows = [], []
    for example in of_part(task.dataset, task.parts, part):
        loaded = load_example(task.dataset, example, len(task.task["channels"]))
        assert loaded.label is not None
        truth = loaded.view.undo(loaded.label)
        found = segmenter(loaded, example.key).mask
        dice = dice_per_structure(found, truth, numbers)
        scores.append([dice[n] for n in numbers])
        present = [bool((truth == n).any() or (found == n).any()) for n in numbers]
        rows.append({"case": example.key, **{task.labels[n - 1]: dice[n] for n in numbers}, "present": present})
    table, there = np.array(scores), np.array([row.pop("present") for row in rows])
    content = {
        "part": part,
        "images": len(rows),
        "mean_dice": float(table.mean()),
        "dice": {name: float(column.mean()) for name, column in zip(task.labels, table.T, strict=True)},
        "empty": {name: int((~column).sum()) for name, column in zip(task.labels, there.T, strict=True)},
        "cases": rows,
    }
    _write_json(Path(out) / f"{part}.json", content)
    return {name: value for name, value in content.items() if name != "cases"}
