"""The ``cgdpm-med`` command: it reads arguments, calls one function of an application module, and reports errors.

Application modules are imported inside the commands, so that ``--help`` answers at once.
Exit codes: 0 if every input succeeded, 1 if one failed, 2 if the command line itself was wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from cgdpm_med.runtime.allocator import keep_freed_memory

app = typer.Typer(
    name="cgdpm-med",
    help="Conditional guided diffusion for medical images. For research; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Method(str, Enum):
    """Samplers."""

    ddim = "ddim"
    ddpm = "ddpm"
    dpmpp_2m = "dpmpp_2m"


class Combination(str, Enum):
    """How the members' masks become one."""

    mean = "mean"
    majority = "majority"
    staple = "staple"


class Identity(str, Enum):
    """Whether DICOM segmentations name the patient."""

    deidentified = "deidentified"
    identified = "identified"


class Precision(str, Enum):
    """Numerical precision of the network."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Members = Annotated[
    int | None, typer.Option(min=1, help="Number of masks in the ensemble.", show_default="the bundle's")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Number of sampling steps of each mask.", show_default="the bundle's")
]
Timesteps = Annotated[
    str | None,
    typer.Option(metavar="T,T,…", help="Timesteps to visit instead, such as 999,666,333.", show_default="the bundle's"),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(min=0, help="Weight w of the guidance network; 0 turns it off.", show_default="the bundle's"),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same masks.", show_default="the bundle's")
]
Device = Annotated[str, typer.Option(help="auto (the first there is of CUDA, MPS, CPU), cpu, cuda, cuda:1 or mps.")]
LabelNames = Annotated[
    str | None,
    typer.Option(
        metavar="1=LV,2=Myo,3=RV",
        help="Names of the label values.",
        show_default="a dataset.json with them, else ACDC's",
    ),
]
ReferenceLabels = Annotated[
    str | None,
    typer.Option(help="Names of the references' label values, where the two differ.", show_default="--labels"),
]
IgnoreGeometry = Annotated[
    bool, typer.Option("--ignore-geometry", help="Pair voxels as stored, on the reference's grid; shapes must agree.")
]
Weights = Annotated[Path | None, typer.Option(help="Weights to use.", show_default="the bundle's")]
Bundle = Annotated[str, typer.Option(help="Name of a bundle (see info), or its folder.")]
SpacingText = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        help="Voxel size: x,y,z in mm such as 1.5,1.5,8, or, of NIfTI, the header's pixdim or affine.",
        show_default="the header's, by a rule",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, for machines.")]


def main() -> None:
    """Run the command line; a bad input or a file error ends in one line on standard error and exit code 1.

    With ``CGDPM_DEBUG=1`` in the environment the traceback is shown instead. An interrupt or a request to terminate
    ends in one line too, with the exit code that shells expect (130, 143), and leaves no partial file.
    """
    warnings.showwarning = _note_or(warnings.showwarning)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app()
    except Interrupted as stop:
        typer.secho(f"interrupted: what is finished is complete{_the_rest()}", err=True)
        sys.exit(stop.code)
    except Exception as error:
        if os.environ.get("CGDPM_DEBUG") == "1" or not _is_users_to_mend(error):
            raise
        typer.secho("error: " + " ".join(str(error).splitlines()), fg=typer.colors.RED, err=True)
        sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(SystemExit):
    """Raised where a signal found the program, so that every file being written is cleared away."""


def _the_rest() -> str:
    return "; segment --continue does the rest" if "segment" in sys.argv[1:2] else ""


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(128 + number)


def _is_users_to_mend(error: Exception) -> bool:
    from cgdpm_med.files import InputError

    return isinstance(error, (InputError, OSError))


def _note_or(show: Any) -> Any:
    """This package's own warnings in one plain line; all others as before."""

    def show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if category.__module__.startswith("cgdpm_med."):
            typer.secho(f"note: {message}", fg=typer.colors.YELLOW, err=True)
        else:
            show(message, category, *rest)

    return show_warning


def _exit_code(failed: Any) -> None:
    if failed:
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_version(wanted: bool) -> None:
    if wanted:
        from cgdpm_med import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    keep_freed_memory()


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(help="A model file, to say what it is.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, device, bundles and the digests of their weights; or what a model file says of itself."""
    from cgdpm_med.apps.info import collect_info, info_lines, model_lines
    from cgdpm_med.models.files import describe_file

    collected = collect_info() if model is None else describe_file(model)
    if as_json:
        _print_json(collected)
    else:
        typer.echo("\n".join(info_lines(collected) if model is None else model_lines(collected)))


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    patients: Annotated[int, typer.Option(min=1, max=99, help="How many synthetic patients.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same patients.")] = 0,
    cine: Annotated[bool, typer.Option("--cine", help="Write the 4D cine of each patient as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write synthetic short-axis cine studies, with their masks, in ACDC's folder layout."""
    from cgdpm_med.phantom import write_phantom_dataset

    folders = [str(folder) for folder in write_phantom_dataset(out, patients=patients, seed=seed, cine=cine)]
    if as_json:
        _print_json({"patients": folders})
    else:
        typer.echo("\n".join(folders))


def _voxel_size(text: str | None) -> Any:
    from cgdpm_med.files import InputError
    from cgdpm_med.volumes import parse_spacing

    try:
        return parse_spacing(text)
    except InputError as error:
        typer.secho(f"error: --spacing: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error


def _timesteps(text: str) -> list[int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit()):
        raise typer.BadParameter(f"{text!r} is not LOW:HIGH, such as 200:1000", param_hint="--guidance-interval")
    return [int(low), int(high)]


def _visited(text: str | None, steps: int | None) -> list[int] | None:
    if text is None:
        return None
    if steps is not None:
        raise typer.BadParameter("they say how many steps there are: leave out --steps", param_hint="--timesteps")
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise typer.BadParameter(f"{text!r} are no timesteps, such as 999,666,333", param_hint="--timesteps")
    return [int(word) for word in words]


def _series_numbers(texts: list[str] | None) -> list[int] | None:
    if not texts:
        return None
    words = [word.strip() for text in texts for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise typer.BadParameter(f"{','.join(texts)!r} are no series numbers, such as 5,7", param_hint="--series")
    return [int(word) for word in words]


@app.command()
def segment(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A NIfTI file, a DICOM series, a folder of them, or ACDC's layout.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; made if absent.")],
    members: Members = None,
    steps: Steps = None,
    timesteps: Timesteps = None,
    method: Annotated[Method | None, typer.Option(help="Sampling method.", show_default="the bundle's")] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Numerical precision of the network.", show_default="the bundle's")
    ] = None,
    weights: Weights = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(help="Timesteps LOW:HIGH at which guidance acts.", show_default="the bundle's"),
    ] = None,
    bundle: Bundle = "acdc_segmentation",
    write: Annotated[
        str,
        typer.Option(help="What to write, separated by commas: mask, probabilities, entropy, disagreement, members."),
    ] = "mask,entropy,disagreement",
    combine: Annotated[
        Combination | None,
        typer.Option(help="How the members become one mask.", show_default="the bundle's"),
    ] = None,
    keep_largest: Annotated[
        bool, typer.Option("--keep-largest", help="Keep the largest piece of each structure; the rest is counted.")
    ] = False,
    ed: Annotated[int | None, typer.Option(min=1, help="End-diastolic frame of a cine, from 1.")] = None,
    es: Annotated[int | None, typer.Option(min=1, help="End-systolic frame of a cine, from 1.")] = None,
    height: Annotated[
        float | None, typer.Option(min=1, help="Height of the patient in cm, to index by body surface.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.1, help="Weight of the patient in kg, to index by body surface.")
    ] = None,
    spacing: SpacingText = None,
    flip_slices: Annotated[
        bool,
        typer.Option("--flip-slices", help="Slices run from apex to base, or against what the header says of them."),
    ] = False,
    pages: Annotated[bool, typer.Option("--report/--no-report", help="Write an HTML page of each study.")] = True,
    label_table: Annotated[
        bool, typer.Option("--label-table", help="Write names and colours for 3D Slicer and ITK-SNAP.")
    ] = False,
    dicom_seg: Annotated[
        Identity | None,
        typer.Option(help="Write DICOM SEG of DICOM inputs, without or with what identifies the patient."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="DICOM series to segment, by number: --series 5,7 or --series 5 --series 7."),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrate/--no-calibration", help="Apply the calibration beside the weights, if it fits."),
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file that calibrate wrote.", show_default="calibration.json beside the weights"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--continue", help="Leave out studies that are complete and made the same way.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Do part i of n, such as 2/8.", show_default="torchrun's RANK and WORLD_SIZE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment cardiac MRI: masks with uncertainty maps on the grid of each input, function, checks and a report.

    Each volume or cine gets <name>.nii.gz (0 background, 1 RV, 2 myocardium, 3 LV), <name>_entropy.nii.gz,
    <name>_disagreement.nii.gz, <name>.html and <name>.json; several studies get cohort.csv and cohort.html.
    """
    from cgdpm_med.apps.segment_slices import is_run

    if is_run(bundle):
        dials = {
            "members": members,
            "steps": steps,
            "method": method and method.value,
            "seed": seed,
            "precision": precision and precision.value,
            "weights": weights and str(weights),
        }
        _check_slice_options(context)
        result = _segment_slices(source, out, bundle, device, dials)
        _report_segmented(result, out, as_json)
        return
    from cgdpm_med.apps.pipeline import Options
    from cgdpm_med.apps.pipeline import segment as run
    from cgdpm_med.apps.resume import find_shard

    options = Options(
        write=tuple(output.strip() for output in write.split(",")),
        staple=combine is Combination.staple,
        keep_largest=keep_largest,
        ed=ed,
        es=es,
        height=height,
        weight=weight,
        pages=pages,
        dicom_seg=None if dicom_seg is None else dicom_seg.value,
        calibrate=calibrated,
        calibration=calibration,
        spacing=_voxel_size(spacing),
        flip_slices=flip_slices,
    )
    result = run(
        source,
        out,
        bundle=bundle,
        device=device,
        options=options,
        resume=resume,
        shard=find_shard(shard),
        label_table=label_table,
        series=_series_numbers(series),
        combine=None if combine is None or combine is Combination.staple else combine.value,
        members=members,
        steps=steps,
        timesteps=_visited(timesteps, steps),
        method=method and method.value,
        seed=seed,
        precision=precision and precision.value,
        weights=weights and str(weights),
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval and _timesteps(guidance_interval),
    )
    _report_segmented(result, out, as_json)


def _report_segmented(result: Any, out: Path, as_json: bool) -> None:
    if as_json:
        _print_json(result)
    else:
        skipped = f", {len(result['skipped'])} complete before" if result["skipped"] else ""
        typer.echo(f"{len(result['cases'])} segmented, {len(result['failed'])} failed{skipped}; results in {out}")
    _exit_code(result["failed"])


_SLICE_OPTIONS = {"source", "out", "bundle", "members", "steps", "method", "seed", "device", "precision", "weights"}


def _check_slice_options(context: typer.Context) -> None:
    """Refuse what was given and is not for a bundle that train wrote."""
    for name in context.params:
        given = str(getattr(context.get_parameter_source(name), "name", "")) == "COMMANDLINE"
        if given and name not in _SLICE_OPTIONS | {"as_json"}:
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(
                "is for hearts, not for a bundle that train wrote: leave it out", param_hint=option
            )


def _segment_slices(source: Path, out: Path, run: str, device: str, dials: dict[str, Any]) -> Any:
    from cgdpm_med.apps.segment_slices import load_segmenter, segment_folder
    from cgdpm_med.inference.segmenter import choose_device

    given = {name: value for name, value in dials.items() if value is not None}
    segmenter = load_segmenter(run, device=f"$torch.device('{choose_device(device)}')", **given)
    return segment_folder(segmenter, source, out)


Hours = Annotated[float | None, typer.Option(min=0.001, help="How long to train; the steps are measured first.")]
Iterations = Annotated[int | None, typer.Option(min=1, help="Training steps, in place of hours.", show_default="5000")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A choice of the plan, such as spacing=1.25.")
]
Patients = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Finds the patient in an image's name, such as ^([^_]+).", show_default="name"),
]
Folds = Annotated[int | None, typer.Option(min=2, help="Cross-validation in so many folds.")]
Fold = Annotated[int | None, typer.Option(min=0, help="Which fold validates, from 0.")]
SplitSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Of split and training.", show_default="0")]
DataSetPath = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A folder: nnU-Net raw, Decathlon, images/ and masks/, ACDC; or a datalist as JSON."
    ),
]


@app.command()
def plan(
    source: DataSetPath,
    hours: Hours = None,
    iterations: Iterations = None,
    settings: Settings = None,
    patients: Patients = None,
    folds: Folds = None,
    fold: Fold = None,
    seed: SplitSeed = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at a data set, check every file, and say how it would be trained on and why."""
    from dataclasses import asdict

    from cgdpm_med.apps.train import Wishes, plan_dataset

    wishes = Wishes(hours, iterations, tuple(settings or ()), patients, folds, fold, seed)
    planned = plan_dataset(source, wishes, device=device)
    if as_json:
        _print_json({"fingerprint": asdict(planned.seen), "plan": asdict(planned.plan), "split": dict(planned.parts)})
    else:
        typer.echo(planned.page)


@app.command()
def train(
    source: DataSetPath,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write: a MONAI bundle.")],
    hours: Hours = None,
    iterations: Iterations = None,
    settings: Settings = None,
    patients: Patients = None,
    folds: Folds = None,
    fold: Fold = None,
    seed: SplitSeed = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a segmentation of your own classes: plan, split by patient, train, score on the test part.

    The same command with DATA and RUN alone continues a run that was stopped. Then: segment IN OUT --bundle RUN.
    """
    from cgdpm_med.apps.train import Wishes
    from cgdpm_med.apps.train import train as run_training

    wishes = Wishes(hours, iterations, tuple(settings or ()), patients, folds, fold, seed)
    result = run_training(source, run, wishes, device=device, say=lambda text: typer.echo(text, err=True))
    if as_json:
        _print_json(result)
        return
    typer.echo(f"trained; weights in {result['weights']}")
    if result["test"]:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in result["test"]["dice"].items())
        typer.echo(f"Dice on {result['test']['images']} test images: {dice}")


@app.command()
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder in ACDC's layout, with reference masks.")],
    section: Annotated[str, typer.Option(help="validation, or train; test patients are refused.")] = "validation",
    split: Annotated[
        Path | None,
        typer.Option(help="JSON with lists train, validation, test of patients.", show_default="ACDC's committed one"),
    ] = None,
    members: Members = None,
    steps: Steps = None,
    timesteps: Timesteps = None,
    method: Annotated[Method | None, typer.Option(help="Sampling method.", show_default="the bundle's")] = None,
    seed: Seed = None,
    device: Device = "auto",
    weights: Weights = None,
    guidance_scale: GuidanceScale = None,
    bundle: Bundle = "acdc_segmentation",
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="calibration.json beside the weights")
    ] = None,
    spacing: SpacingText = None,
    as_json: AsJson = False,
) -> None:
    """Fit probabilities and intervals to patients of known truth, for these weights and settings.

    At least nine patients that the network was not trained on. Segment applies the result by default; masks and values
    stay as they are, probabilities, entropy maps and 90 % intervals change.
    """
    from cgdpm_med.evaluation.calibrate import calibrate as run
    from cgdpm_med.evaluation.calibrate import format_calibration

    result = run(
        source,
        section=section,
        split=split,
        bundle=bundle,
        device=device,
        output=output,
        spacing=_voxel_size(spacing),
        members=members,
        steps=steps,
        timesteps=_visited(timesteps, steps),
        method=method and method.value,
        seed=seed,
        weights=weights and str(weights),
        guidance_scale=guidance_scale,
    )
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"{format_calibration(result)}\nwritten to {result['file']}")


@app.command()
def cohort(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that segment wrote.")], as_json: AsJson = False
) -> None:
    """Make cohort.csv and cohort.html of all finished studies in a folder, after its parts were done apart."""
    from cgdpm_med.report.records import collect_cohort

    result = collect_cohort(out)
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"{len(result['studies'])} studies in {', '.join(result['files'])}")


@app.command(name="super-resolve")
def super_resolve(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A picture (PNG, JPEG, TIFF), a volume (NIfTI, NRRD, MetaImage), or a folder of them."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; made if absent.")],
    weights: Annotated[Path, typer.Option(help="Weights: an ADM upsampler's, or with --bundle those of the bundle.")],
    bundle: Annotated[
        str | None, typer.Option(help="Name of a super-resolution bundle (see info), or its folder.")
    ] = None,
    class_index: Annotated[
        int | None, typer.Option(min=0, help="ImageNet class of the images, for ADM weights.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the network's window in pixels.", show_default="the bundle's; ADM: 256"),
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(min=1, help="Number of samples; several give a map of their spread.", show_default="the bundle's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of sampling steps of each sample.", show_default="the bundle's; ADM: 250"),
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Sampling method.", show_default="the bundle's; ADM: ddpm")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same samples.", show_default="the bundle's")
    ] = None,
    guidance_scale: GuidanceScale = None,
    guidance_weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the bundle's guidance network.", show_default="guidance.pt beside --weights"),
    ] = None,
    project: Annotated[
        bool | None,
        typer.Option(
            help="Make samples of ADM's networks agree with their input.", show_default="the bundle's; ADM: off"
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Numerical precision of the network.", show_default="the bundle's")
    ] = None,
    spacing: SpacingText = None,
    as_json: AsJson = False,
) -> None:
    """Make pictures, or the slices of a volume, finer: images of any size, in joint overlapping windows.

    Each input gets <name>, the mean of its samples; with several, also <name>_sample<k> (of a volume <name>_samples)
    and <name>_std, their standard deviation at each pixel.
    """
    from cgdpm_med.apps.super_resolve import load_resolver
    from cgdpm_med.apps.super_resolve import super_resolve as run

    voxels = _voxel_size(spacing)
    resolver = load_resolver(
        weights,
        bundle,
        class_index=class_index,
        window=window,
        device=device,
        members=members,
        steps=steps,
        method=method and method.value,
        seed=seed,
        guidance_scale=guidance_scale,
        guidance_weights=guidance_weights and str(guidance_weights),
        project=project,
        precision=precision and precision.value,
    )
    result = run(resolver, source, out, spacing=voxels)
    if as_json:
        _print_json(result)
    else:
        typer.echo(f"{len(result['cases'])} super-resolved, {len(result['failed'])} failed; results in {out}")
    _exit_code(result["failed"])


def _labels(text: str | None, option: str) -> Any:
    from cgdpm_med.evaluation.label_names import parse_labels
    from cgdpm_med.files import InputError

    try:
        return None if text is None else parse_labels(text, option)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _by_method(texts: list[str], methods: list[str]) -> dict[str, Any]:
    """Labels by method; those given without a method's name hold for all others."""
    option, found = "--prediction-labels", {}
    for text in texts:
        named = [method for method in methods if text.startswith(f"{method}:")]
        name = max(named, key=len, default="")  # a method's name may hold a colon
        if not name and ":" in text:
            raise typer.BadParameter(f"there is no method {text.partition(':')[0]!r}", param_hint=option)
        found[name] = _labels(text.removeprefix(f"{name}:"), option)
    return {name: found.get(name, found.get("")) for name in methods}


def _methods(texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise typer.BadParameter(f"{text!r} is not NAME=FOLDER", param_hint="A=DIR")
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="A=DIR")
        found[name] = Path(folder)
    if len(found) < 2:
        raise typer.BadParameter("two methods at least are compared", param_hint="A=DIR B=DIR")
    return found


def _to_stderr(lines: list[str]) -> None:
    for line in lines:
        typer.secho(line, fg=typer.colors.YELLOW, err=True)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted masks: a folder, or one file.")],
    references: Annotated[Path, typer.Argument(metavar="REF", help="Reference masks: a folder, or one file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for cases.csv, summary.json and left_out.csv.")] = None,
    labels: LabelNames = None,
    reference_labels: ReferenceLabels = None,
    prediction_labels: Annotated[
        str | None,
        typer.Option(help="Names of the predictions' label values, where the two differ.", show_default="--labels"),
    ] = None,
    ignore_geometry: IgnoreGeometry = False,
    spacing: SpacingText = None,
    as_json: AsJson = False,
) -> None:
    """Score masks against references: Dice, HD95 and ASSD for each structure, volume by volume.

    Files pair by name; the endings _gt (ACDC) and _0000 (nnU-Net) do not count. 4D masks are scored frame by frame,
    those that the reference does not draw left out. Structures that no reference holds are named and left out.
    """
    from cgdpm_med.evaluation.files import format_summary, notes
    from cgdpm_med.evaluation.masks import evaluate_folders

    summary = evaluate_folders(
        predictions,
        references,
        out,
        labels=_labels(labels, "--labels"),
        prediction_labels=_labels(prediction_labels, "--prediction-labels"),
        reference_labels=_labels(reference_labels, "--reference-labels"),
        ignore_geometry=ignore_geometry,
        spacing=_voxel_size(spacing),
    )
    if as_json:
        _print_json(summary)
        _to_stderr(notes(summary))
    else:
        typer.echo(format_summary(summary))
    _exit_code(summary["failed"])


@app.command()
def compare(
    references: Annotated[Path, typer.Argument(metavar="REF", help="Folder of reference masks.")],
    methods: Annotated[
        list[str], typer.Argument(metavar="A=DIR B=DIR ...", help="Two or more methods: a name and its masks.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the tables: CSV, Markdown, LaTeX, JSON.")] = None,
    labels: LabelNames = None,
    reference_labels: ReferenceLabels = None,
    prediction_labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of the label values of all methods, or NAME:1=LV,... of one; may be repeated.",
            show_default="--labels",
        ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression: its first group in a case's key is the patient."),
    ] = None,
    ignore_geometry: IgnoreGeometry = False,
    spacing: SpacingText = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same cases: paired differences of Dice, HD95 and ASSD, with patients as the unit.

    Means and differences over patients, BCa bootstrap intervals that draw patients, Wilcoxon's signed-rank test with
    Holm's correction over all tests of the table. A case that one method lacks is named and left out for all.
    """
    from cgdpm_med.evaluation.compare import compare_methods
    from cgdpm_med.evaluation.compare_files import comparison_notes, format_comparison

    named = _methods(methods)
    comparison = compare_methods(
        references,
        named,
        out,
        labels=_labels(labels, "--labels"),
        reference_labels=_labels(reference_labels, "--reference-labels"),
        prediction_labels=_by_method(prediction_labels or [], list(named)),
        patient_pattern=patient_pattern,
        ignore_geometry=ignore_geometry,
        spacing=_voxel_size(spacing),
        seed=seed,
    )
    if as_json:
        _print_json(comparison)
        _to_stderr(comparison_notes(comparison))
    else:
        typer.echo(format_comparison(comparison))
    _exit_code(comparison["failed"])


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")] = Path("demo_output"),
    members: Members = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
    weights: Weights = None,
    bundle: Bundle = "acdc_segmentation",
    as_json: AsJson = False,
) -> None:
    """Segment a synthetic patient with the shipped weights and compare with its known truth."""
    from cgdpm_med.apps.demo import run_demo

    result = run_demo(
        out,
        bundle=bundle,
        device=device,
        report=(lambda text: None) if as_json else typer.echo,
        members=members,
        steps=steps,
        seed=seed,
        weights=weights and str(weights),
    )
    if as_json:
        _print_json(result)


if __name__ == "__main__":
    main()
