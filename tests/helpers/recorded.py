"""What the shipped weights and seeded runs give, summed up for ``test_stays_equal.py``.

``python tests/helpers/recorded.py`` writes ``tests/data/recorded.json``: record before a change that shall change
nothing, and only then; with names, those cases alone, on the machine of the others. Arrays are summed up by a digest of
their bytes, and by numbers that hold where another CPU's kernels add in another order.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med import Options, Segmenter, SuperResolver, evaluate_acdc, segment, write_phantom_dataset
from cgdpm_med.models import save_model
from cgdpm_med.phantom import PhantomSpec, make_phantom

REPO = Path(__file__).resolve().parents[2]
RECORD = REPO / "tests" / "data" / "recorded.json"
CARDIAC, FACES = (REPO / "bundles" / name for name in ("acdc_segmentation", "face_sr_16_128"))
CPU = {"device": "$torch.device('cpu')", "precision": "float32"}
AS_RECORDED: dict[str, Any] = {"shared_first_step": False, "guidance_scale": 0.25, "scout_steps": 2}
"""What the cardiac bundle's defaults were when the record was made."""
MAPS = ("mask", "entropy", "disagreement", "probabilities", "members")
SHAPE, SPACING = (64, 56, 3), (2.8, 2.8, 24.0)
FIELD = 128  # of the network; the bundle's own is 192, at twice the cost
TRAIN, VALIDATION, TEST = 2, 1, 11  # phantoms that bear the number of an ACDC patient take its place in the split

Summary = dict[str, Any]


def kind_of_machine() -> dict[str, str]:
    """Where digests are comparable: equal kernels, chosen by an equal processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "capability": capability, "processor": _processor()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def summary(array: NDArray[Any] | torch.Tensor) -> Summary:
    """Digest, shape and numbers: counts of the values of integers, moments and quantiles of floats."""
    values = np.ascontiguousarray(array.detach().numpy() if isinstance(array, torch.Tensor) else array)
    digest = hashlib.sha256(values.tobytes()).hexdigest()[:24]
    about: Summary = {"digest": digest, "dtype": str(values.dtype), "shape": list(values.shape)}
    if np.issubdtype(values.dtype, np.integer):
        return about | {"counts": np.bincount(values.ravel().astype(np.int64)).tolist()}
    quantiles = np.quantile(values, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]).tolist()
    return about | {"mean": float(values.mean()), "std": float(values.std()), "quantiles": quantiles}


# --- segmentation -----------------------------------------------------------------------------------------------------


def of_segment(source: Path, output: Path, **changes: Any) -> dict[str, Summary]:
    """The maps that ``segment`` writes, by file name."""
    settings = {"members": 2, "steps": 2, "precision": "float32", "device": "cpu", "field": FIELD}
    result = segment(source, output, options=Options(write=MAPS, pages=False), **{**settings, **AS_RECORDED, **changes})
    assert not result["failed"], result["failed"]
    files = sorted(output.rglob("*.nii.gz"))
    return {path.name: summary(np.asanyarray(nib.load(path).dataobj)) for path in files}  # type: ignore[attr-defined]


def nifti(folder: Path) -> dict[str, Summary]:
    """One volume at the bundle's own field."""
    spec = PhantomSpec.small(5, shape=SHAPE, spacing=SPACING)
    _write(folder / "in" / "volume.nii.gz", make_phantom(spec).images[1], np.diag([2.8, -2.8, 24.0, 1]))
    return of_segment(folder / "in" / "volume.nii.gz", folder / "out", members=3, steps=3, field=192)


def cine(folder: Path) -> dict[str, Summary]:
    """A few frames."""
    frames = make_phantom(PhantomSpec.small(6, num_frames=3, shape=SHAPE, spacing=SPACING), cine=True).images
    data = np.stack([frames[number] for number in sorted(frames)], axis=-1)
    _write(folder / "in" / "cine.nii.gz", data, np.diag([-2.8, -2.8, 24.0, 1]))
    return of_segment(folder / "in", folder / "out", members=1)


def dicom(folder: Path) -> dict[str, Summary]:
    """The phantom as a scanner's files."""
    from dicom_scans import Scan

    frames = make_phantom(PhantomSpec.small(7, shape=SHAPE, spacing=SPACING)).images
    scan = Scan(slices=SHAPE[2], phases=1, size=SHAPE[:2], spacing=SPACING[:2], gap=SPACING[2])
    scan.voxels = np.clip(frames[1], 0, 60000).astype(np.uint16)[..., None]
    found = of_segment(scan.write(folder / "in"), folder / "out", members=1, steps=1)
    # a DICOM series without a name of its own is called by its digest or number
    return {f"{name.partition('_')[2] or 'mask'}": values for name, values in found.items()}


def _write(path: Path, data: NDArray[Any], affine: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine)
    image.set_sform(affine, 1)
    nib.save(image, path)


def evaluation(folder: Path) -> dict[str, Any]:
    """The score table of the two images of one patient."""
    write_phantom_dataset(folder, [TEST], seed=3, shape=SHAPE, spacing=SPACING, num_frames=6)
    segmenter = Segmenter.from_bundle(CARDIAC, members=2, steps=1, field=FIELD, **CPU, **AS_RECORDED)
    table = evaluate_acdc(segmenter, folder, "test", None)
    return {name: table[name] for name in ("structures", "average", "ensemble", "volumes")}


# --- super-resolution -------------------------------------------------------------------------------------------------


def picture(folder: Path) -> dict[str, Summary]:
    """Members of one picture, in windows and without, by seeded weights that predict v of the picture itself."""
    return _members(folder, **PICTURE_ITSELF)


def residual_picture(folder: Path) -> dict[str, Summary]:
    """The same by weights that predict the residual, as the bundle has it."""
    return _members(folder, **AS_RECORDED_FACES)


AS_RECORDED_FACES: dict[str, Any] = {"patch_size": 2, "attention_levels": [False, False, False, True]}
"""Of the face bundle's network when the record was made."""
UNIFORM: dict[str, Any] = {"loss#timesteps": "$cgdpm_med.diffusion.losses.uniform_timesteps"}
"""How its training drew t."""
# of version 0.1
PICTURE_ITSELF: dict[str, Any] = {
    **AS_RECORDED_FACES,
    "target": {"_target_": "cgdpm_med.ImageTarget", "channels": 3, "factor": "@factor"},
    "prediction_type": "v_prediction",
    "attention_levels": [False, False, True, True],
}


def _members(folder: Path, **settings: Any) -> dict[str, Summary]:
    flow = _workflow(FACES, "train", "train", channels=[16, 32, 32, 32], num_res_blocks=1, **CPU, **settings)
    weights = seeded(flow.parser.get_parsed_content("network_def").state_dict(), 0)
    save_model(folder / "model.pt", weights, flow.parser.get_parsed_content("description"))
    resolver = SuperResolver.from_bundle(FACES, weights=str(folder / "model.pt"), steps=3, members=2, **CPU)
    images = 2 * torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1)) - 1
    return {"windows": summary(resolver(images)), "one field": summary(resolver(images[..., :16, :16]))}


def seeded(state: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Normal weights of a tenth, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(state[name].shape, generator=generator) for name in sorted(state)}


# --- training ---------------------------------------------------------------------------------------------------------


def cardiac_training(folder: Path) -> dict[str, Any]:
    """Ten steps of stage 1, interrupted after the fifth and resumed; a few of stage 2 on what they left."""
    write_phantom_dataset(folder / "in", [TRAIN, VALIDATION], seed=1, shape=SHAPE, spacing=SPACING, num_frames=6)
    common: dict[str, Any] = {"dataset_dir": str(folder / "in"), "val_interval": 5, "epochs": 5}
    found = _trained(CARDIAC, folder / "out", "smoke", interrupt=5, **common)
    second: dict[str, Any] = {
        "denoiser_weights": str(folder / "out" / "model.pt"),
        "epochs": 1,
        "iterations": 3,
        "val_interval": 1,
    }
    names = ("train", "train_guidance")
    return found | _trained(CARDIAC, folder / "guide", "smoke", names, **{**common, **second})


def face_training(folder: Path) -> dict[str, Any]:
    """Four steps of stage 1 of super-resolution, and two of stage 2, with the settings of version 0.1."""
    optimiser = {"learning_rate": 2e-4, "warmup": 500, "ema_momentum": 0.0005}
    chosen = {name: value for name, value in PICTURE_ITSELF.items() if name not in AS_RECORDED_FACES}
    return _face_training(folder, shrink=None, **optimiser, **chosen)


def residual_training(folder: Path) -> dict[str, Any]:
    """The same as the bundle has it: residuals, and pictures of several scales."""
    return _face_training(folder, learning_rate=5e-4, ema_momentum=0.002)


def _face_training(folder: Path, **settings: Any) -> dict[str, Any]:
    _write_pictures(folder / "in")
    common: dict[str, Any] = {"dataset_dir": str(folder / "in"), "val_interval": 2, **settings}
    found = _trained(FACES, folder / "out", "sr_smoke", epochs=2, iterations=2, **UNIFORM, **common)
    second: dict[str, Any] = {"denoiser_weights": str(folder / "out" / "model.pt"), "learning_rate": 1e-4}
    names = ("train", "train_guidance")
    return found | _trained(FACES, folder / "guide", "sr_smoke", names, **{**common, **second})


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(6):
        coarse = Image.fromarray(rng.integers(40, 216, (4, 4, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.NEAREST).save(folder / f"{i}.png")


def _trained(
    bundle: Path, output: Path, small: str, names: tuple[str, ...] = ("train",), interrupt: int | None = None, **of: Any
) -> dict[str, Any]:
    """Losses of all steps, weights and moving average of a run; ``interrupt`` stops it once behind that step."""
    losses: list[float] = []
    for stop in (interrupt, None) if interrupt else (None,):
        settings = {"output_dir": str(output), **CPU, **of}
        flow = _workflow(bundle, "train", *names, REPO / "configs" / f"{small}.yaml", **settings)
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(_loss(engine)))
        if stop is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), _power_cut)
        try:
            flow.run()
        except KeyboardInterrupt:
            continue
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    what = "+".join(names)
    found = {f"{what} {part}": summary(_joined(state[part])) for part in ("network", "ema")}
    return found | {f"{what} losses": losses, f"{what} best": state["best"]["best"]}


def _loss(engine: Any) -> float:
    output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
    return float(output["loss"])


def _power_cut() -> None:
    raise KeyboardInterrupt


def _joined(state: Mapping[str, Any]) -> torch.Tensor:
    tensors = [state[name] for name in sorted(state) if isinstance(state[name], torch.Tensor)]
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def _workflow(bundle: Path, kind: str, *names: str | Path, **settings: Any) -> ConfigWorkflow:
    files = [str(name if isinstance(name, Path) else bundle / "configs" / f"{name}.yaml") for name in names]
    given = {"bundle_root": str(bundle), **settings}
    metadata = str(bundle / "configs" / "metadata.json")
    flow = ConfigWorkflow(files, metadata, logging_file=False, workflow_type=kind, **given)
    flow.initialize()
    return flow


RECORDED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nifti": nifti,
    "cine": cine,
    "dicom": dicom,
    "evaluation": evaluation,
    "picture": picture,
    "residual_picture": residual_picture,
    "cardiac_training": cardiac_training,
    "face_training": face_training,
    "residual_training": residual_training,
}


# --- comparison -------------------------------------------------------------------------------------------------------


def differences(found: Any, wanted: Any, place: str = "", *, exact: bool) -> Iterator[str]:
    """Where two records differ: in anything at all, or in more than another CPU's last bits explain."""
    if isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            yield f"{place}: {sorted(found)} instead of {sorted(wanted)}"
            return
        total = sum(wanted["counts"]) if "counts" in wanted else 0
        for name in wanted:
            if name == "digest" and not exact:
                continue
            if name == "counts" and not exact:
                yield from _voxels(found[name], wanted[name], total, place)
                continue
            yield from differences(found[name], wanted[name], f"{place}/{name}", exact=exact)
    elif isinstance(wanted, list) and len(found) == len(wanted):
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            yield from differences(*pair, f"{place}[{index}]", exact=exact)
    elif found != wanted and (exact or not _close(found, wanted)):
        yield f"{place}: {found!r} instead of {wanted!r}"


def _voxels(found: list[int], wanted: list[int], total: int, place: str) -> Iterator[str]:
    """Voxels on a boundary may fall to the other side, one in a thousand."""
    longest = max(len(found), len(wanted))
    a, b = (np.pad(counts, (0, longest - len(counts))) for counts in (found, wanted))
    if np.abs(a - b).sum() > 2e-3 * total + 2:
        yield f"{place}/counts: {found} instead of {wanted}"


def _close(found: Any, wanted: Any) -> bool:
    numbers = isinstance(found, (int, float)) and isinstance(wanted, (int, float))
    return numbers and abs(found - wanted) <= 1e-4 + 1e-3 * abs(wanted)


def main() -> None:
    """Write the record."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": kind_of_machine()}
    names = sys.argv[1:]
    if names:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        if record["machine"] != kind_of_machine():
            raise SystemExit(f"the other cases were recorded on {record['machine']}: record all of them here")
    for name in names or RECORDED:
        with TemporaryDirectory() as folder:
            record[name] = RECORDED[name](Path(folder))
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
