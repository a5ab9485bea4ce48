"""``cgdpm-med archive``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cgdpm_med.apps.commands.options import (
    AsJson,
    Device,
    Identity,
    Members,
    Precision,
    Seed,
    Steps,
    Weights,
    exit_code,
    print_json,
)


def archive(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of a DICOMweb service, https://HOST/dicom-web.")],
    study_date: Annotated[
        str | None, typer.Option(metavar="DATE", help="Studies of a day or of days: 20240131, 20240101-20240131.")
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="Series whose description is like this, with * and ?, such as *sax*.")
    ] = None,
    uids: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Series by StudyInstanceUID and SeriesInstanceUID.")
    ] = None,
    dicom_seg: Annotated[
        Identity, typer.Option(help="Whether what is stored names the patient, as segment --dicom-seg.")
    ] = Identity.deidentified,
    bundle: Annotated[str, typer.Option(help="Name of a bundle (see info), or its folder.")] = "acdc_segmentation",
    weights: Weights = None,
    members: Members = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Numerical precision of the network.", show_default="the bundle's")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Look again and again, this far apart.")
    ] = None,
    polls: Annotated[int, typer.Option(min=1, help="How often --watch looks.")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, help="How long one request may take.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Segment MR series of an archive, and store DICOM SEG and a structured report of the measurements beside them.

    What has its report is left out. Credentials come from CGDPM_ARCHIVE_TOKEN, or from CGDPM_ARCHIVE_USER and
    CGDPM_ARCHIVE_PASSWORD. Studies are named by the first 12 digits of the SHA-256 of their UID.
    """
    if not (study_date or description or uids):
        raise typer.BadParameter(
            "give one of them: an archive is large", param_hint="--study-date, --description, --uids"
        )
    if study_date and not re.fullmatch(r"\d{8}(-\d{8})?", study_date):
        raise typer.BadParameter(f"{study_date!r} is not YYYYMMDD or YYYYMMDD-YYYYMMDD", param_hint="--study-date")
    from functools import partial

    from cgdpm_med.apps.archive import ArchiveRun, questions
    from cgdpm_med.apps.dicomweb import Archive, read_uids
    from cgdpm_med.apps.segment_options import Options
    from cgdpm_med.apps.study_run import build_model
    from cgdpm_med.console import CaseBar
    from cgdpm_med.inference.segmenter import load_segmenter

    server = Archive(url, seconds=seconds)
    wanted = questions(study_date, description, read_uids(uids) if uids else ())
    given = {
        "members": members,
        "steps": steps,
        "seed": seed,
        "precision": precision and precision.value,
        "weights": weights and str(weights),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    options = Options(write=("mask",), pages=False, dicom_seg=dicom_seg.value)
    model = build_model(partial(load_segmenter, bundle, device, changes), options)
    with CaseBar("segmenting", []) as bar:
        run = ArchiveRun(server, model, dicom_seg.value, bar)
        run.watch(wanted, polls, watch) if watch else run.once(wanted)
    result = run.outcome
    if as_json:
        print_json({"stored": result.stored, "skipped": result.skipped, "failed": result.failed})
    else:
        skipped = f", {len(result.skipped)} done before" if result.skipped else ""
        typer.echo(f"{len(result.stored)} studies segmented and stored, {len(result.failed)} failed{skipped}")
    exit_code(result.failed)
