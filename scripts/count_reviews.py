"""How many of ACDC's patients the checks of sizes, axes and slice order send to review: all of these are false alarms.

python scripts/count_reviews.py ACDC_FOLDER                   # the reference masks
python scripts/count_reviews.py ACDC_FOLDER --masks OUT       # the masks of `cgdpm-med segment ACDC_FOLDER OUT`
python scripts/count_reviews.py ACDC_FOLDER --masks OUT --reversed    # those of copies stored from apex to base
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cgdpm_med.data.acdc import acdc_datalist
from cgdpm_med.files import InputError
from cgdpm_med.inference.quality import Finding
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import Volume, read_labels, read_volume

OLDER = {
    "predicted Dice",
    "empty structure",
    "missing slices",
    "fragments",
    "LV outside myocardium",
    "header",
    "ejection fraction",
    "uncertain function",
}
"""Checks of shape and doubt; every other is counted."""


def segmentation_of(image: Volume, labels: Volume, key: str) -> Segmentation:
    """A mask as the segmenter would hand it over, with itself as its only member."""
    mask = labels.data.astype(np.uint8)
    nothing = np.zeros(mask.shape, dtype=np.float32)
    return Segmentation(key, mask, np.stack([nothing] * 4), nothing, nothing, mask[None], image)


def mask_of(item: Mapping[str, str], masks: Path | None) -> Path | None:
    """The mask to judge: the reference, or what was segmented, None where it was not."""
    if masks is None:
        return Path(item["label"])
    return next(iter(sorted(masks.rglob(Path(item["image"]).name))), None)


def studies(folder: str, masks: Path | None, *, turned: bool) -> Iterator[Study]:
    """Every patient; one with a single phase has no function."""
    found: dict[str, Study] = {}
    for item in acdc_datalist(folder, "all"):
        if (path := mask_of(item, masks)) is None:
            continue
        image, labels = read_volume(item["image"]), read_labels(path)
        if turned:
            image = Volume(image.data[..., ::-1], image.grid, image.path)
        study = found.setdefault(item["patient"], Study(item["patient"], known={"ED": 1, "ES": 2}))
        study.add(("ED", "ES").index(item["frame"]) + 1, segmentation_of(image, labels, item["key"]))
    yield from found.values()


def alarms(study: Study) -> list[Finding]:
    """What the newer checks send to review."""
    return [f for f in study.result().quality.findings if f.review and f.check not in OLDER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="in ACDC's layout")
    parser.add_argument("--masks", type=Path, help="output folder of cgdpm-med segment; the references by default")
    parser.add_argument("--reversed", action="store_true", help="the masks are of stacks stored from apex to base")
    options = parser.parse_args()
    checks: Counter[str] = Counter()
    number = sent = 0
    for study in studies(options.folder, options.masks, turned=options.reversed):
        try:
            found = alarms(study)
        except InputError as error:
            print(f"left out: {error}")
            continue
        number, sent = number + 1, sent + bool(found)
        checks.update({finding.check for finding in found})
        for finding in found:
            print(f"{study.key}: {finding.check}: {finding.reason}")
    print(f"{sent} of {number} patients go to review")
    for check, count in checks.most_common():
        print(f"{count:>5}  {check}")


if __name__ == "__main__":
    main()
