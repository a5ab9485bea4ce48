"""A segmenter that leaves what it made: an evaluation's masks, to look at afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.studies.outputs import check_outputs, describe, save_maps, write_json
from cgdpm_med.volumes import Volume


class KeepingSegmenter(Segmenter):
    """A :class:`~cgdpm_med.Segmenter` that writes each case it is given: ``<key>.nii.gz`` and ``<key>.json``.

    The files are those that ``cgdpm-med segment`` writes for an image.

    Args:
        folder: where to.
        as_segmenter: arguments of :class:`~cgdpm_med.Segmenter`.
        write: outputs besides the JSON, see :data:`~cgdpm_med.studies.map_names.OUTPUTS`.
    """

    def __init__(self, folder: str | Path, write: str | Sequence[str] = ("mask",), **as_segmenter: Any) -> None:
        super().__init__(**as_segmenter)
        self.folder, self.write = Path(folder), check_outputs(write)

    def __call__(
        self, volume: Volume, key: str | None = None, progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Segment one three-dimensional volume, and write the result; see :meth:`~cgdpm_med.Segmenter.__call__`."""
        result = super().__call__(volume, key, progress)
        save_maps(result, self.folder, result.key, self.write)
        write_json(describe(result), self.folder / f"{result.key}.json")
        return result
