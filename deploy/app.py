"""DICOM series in, DICOM SEG and report out: an application for MONAI Deploy, and without it a plain program.

python deploy/app.py -i IN -o OUT

Where MONAI Deploy's App SDK is installed, the work is one operator of a Holoscan application, and the folders may come
from HOLOSCAN_INPUT_PATH and HOLOSCAN_OUTPUT_PATH, as in a packaged application (MAP). Elsewhere it is done directly.
Either way it is what ``cgdpm-med segment IN OUT --dicom-seg deidentified`` does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgdpm_med import InputError, Options, segment


def main(words: Sequence[str] | None = None) -> int:
    """Run the application; 0 where every series succeeded, 1 otherwise."""
    given = parse_arguments(words)
    try:
        result = run_in_holoscan(given) if has_holoscan() else segment_folder(given.input, given.output, given.bundle)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if result["failed"] else 0


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Folders and bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, variable in (("input", "HOLOSCAN_INPUT_PATH"), ("output", "HOLOSCAN_OUTPUT_PATH")):
        known = os.environ.get(variable)
        parser.add_argument(f"-{name[0]}", f"--{name}", type=Path, default=known, required=known is None)
    parser.add_argument("-b", "--bundle", default="acdc_segmentation", help="name or folder")
    return parser.parse_args(words)


def segment_folder(source: Path, output: Path, bundle: str) -> dict[str, Any]:
    """Masks, DICOM SEG and reports of every series below a folder; what :func:`cgdpm_med.segment` returns."""
    return segment(source, output, bundle=bundle, options=Options(dicom_seg="deidentified"))


def has_holoscan() -> bool:
    """Whether MONAI Deploy's App SDK and what it stands on are installed."""
    try:
        import holoscan.core  # noqa: F401
        import monai.deploy.core  # noqa: F401
    except Exception:  # an SDK that is half installed raises whatever its parts do
        return False
    return True


def run_in_holoscan(given: argparse.Namespace) -> dict[str, Any]:
    """The same inside an application of one operator."""
    from monai.deploy.core import Application, Operator, OperatorSpec

    results: list[dict[str, Any]] = []

    class SegmentOperator(Operator):  # type: ignore[misc, unused-ignore]
        """Has no ports: it reads a folder and writes one."""

        def setup(self, spec: OperatorSpec) -> None: ...

        def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
            results.append(segment_folder(given.input, given.output, given.bundle))

    class SegmentApplication(Application):  # type: ignore[misc, unused-ignore]
        def compose(self) -> None:
            from monai.deploy.conditions import CountCondition

            self.add_operator(SegmentOperator(self, CountCondition(self, 1), name="segment"))

    SegmentApplication([]).run()
    return results[0]


if __name__ == "__main__":
    raise SystemExit(main())
