"""Pictures and volumes of a folder made finer: what ``cgdpm-med super-resolve`` does.

Pictures keep their format, depth, colour profile and EXIF data (transparency is laid over white). Volumes are refined
slice by slice, in plane. Beside each result lie a JSON and a page with before, after and doubt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cgdpm_med.apps.load_resolver import Resolvers
from cgdpm_med.apps.refined import Refined, is_result, of_members, write_record
from cgdpm_med.apps.refined_picture import super_resolve_picture
from cgdpm_med.apps.refined_volume import super_resolve_volume
from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.data.transforms import case_name
from cgdpm_med.files import InputError, check_place, sweep_temporaries
from cgdpm_med.images import PICTURE_SUFFIXES, image_datalist
from cgdpm_med.runtime.batching import memory_errors
from cgdpm_med.runtime.engines import Engine, InProcess, Progress, about, do_in_order
from cgdpm_med.studies.cases import Case
from cgdpm_med.studies.folders import (
    LABEL_MAPS,
    RESULTS,
    FolderWarning,
    is_volume,
    left_out_lines,
    survey,
    volume_files,
)
from cgdpm_med.volumes import Spacing, check_spacing
from cgdpm_med.volumes.formats import PAIR_VOXELS, VOLUME_SUFFIXES, is_named


def super_resolve(
    resolver: SuperResolver | Resolvers, source: str | Path, output: str | Path, *, spacing: Spacing = "auto"
) -> dict[str, Any]:
    """Refine whatever lies at ``source``: what ``cgdpm-med super-resolve`` does.

    A bad input is reported on standard error, and the others go on. Each result gets ``<name>.json`` and
    ``<name>.html`` beside it.

    Args:
        resolver: of all inputs, or one of volumes and one of pictures.
        spacing: of every input, see :func:`~cgdpm_med.read_volume`.

    Returns:
        ``cases`` (``input``, ``files``, ``record``, the JSON and the page, ``mean_spread`` and ``notes``) and
        ``failed``, the error of each failed case by key.

    Raises:
        InputError: when there is nothing to refine.

    Warns:
        FolderWarning: of label maps and earlier results, which are left out.
    """
    resolvers = Resolvers(resolver, resolver) if isinstance(resolver, SuperResolver) else resolver
    return super_resolve_with(InProcess(), lambda: resolvers, source, output, spacing=spacing)


def super_resolve_with(
    engine: Engine,
    resolvers: Callable[[], Resolvers],
    source: str | Path,
    output: str | Path,
    *,
    spacing: Spacing = "auto",
) -> dict[str, Any]:
    """:func:`super_resolve` by an engine, whose ``once`` made the resolvers.

    Raises:
        InputError: when there is nothing to refine, no place to write to, or the engine cannot go on.
    """
    check_spacing(spacing)
    cases = find_images(source, exclude=output)
    for line in left_out_lines(Path(source), _left_out(Path(source), Path(output))):
        warnings.warn(line, FolderWarning, stacklevel=2)
    check_place(Path(output))
    work = _Refining(resolvers, Path(output), spacing, frozenset(case.key for case in cases))
    with CaseBar("super-resolving", [case.key for case in cases]) as bar:
        answers = do_in_order(engine, work, cases, bar.update, partial(_show, bar))
    failed = {c.key: str(about(a, c.image)) for c, a in zip(cases, answers, strict=True) if isinstance(a, InputError)}
    return {"cases": [answer for answer in answers if not isinstance(answer, InputError)], "failed": failed}


@dataclass(frozen=True)
class _Refining:
    """Refines one input after the other, in this process or another, by resolvers that it makes once.

    Attributes:
        keys: of all inputs.
    """

    resolvers: Callable[[], Resolvers]
    output: Path
    spacing: Spacing
    keys: frozenset[str]

    def __call__(self, case: Case, progress: Progress) -> dict[str, Any]:
        progress(case.key, 0.0)
        several = case.error is None and self.resolvers().of(case).predictor.sampling.members > 1
        if several and (other := of_members(case.key)) in self.keys:
            what = f"has the name of a sample or the spread of {other}"
            raise InputError(what, path=case.image, remedy="Rename one of the two, or refine them into two folders")
        return _refine(self.resolvers(), case, self.output / case.folder, progress, self.spacing)


def _show(bar: CaseBar, case: Case, answer: dict[str, Any] | InputError) -> None:
    if isinstance(answer, InputError):
        complain(about(answer, case.image), bar)
    else:
        for note in answer["notes"]:
            bar.line(f"note: {case.key}: {note}")
        bar.note(f"super-resolved {case.key}")
    bar.update(case.key, 1.0)


def _refine(resolvers: Resolvers, case: Case, folder: Path, progress: Progress, spacing: Spacing) -> dict[str, Any]:
    if case.error is not None:
        raise case.error
    resolver = resolvers.of(case)
    with memory_errors(case.image, "Use another device, fewer --members, or a smaller --window"):
        refined = _refined(resolver, case, folder, partial(progress, case.key), spacing)
        record = write_record(resolver, refined, case.key)
    for path in (*refined.files, *record):
        sweep_temporaries(path)  # of a process that was killed at this case
    return {
        "input": str(case.image),
        "files": [str(file) for file in refined.files],
        "record": [str(file) for file in record],
        "mean_spread": refined.mean_spread,
        "notes": list(refined.notes),
    }


def _refined(
    resolver: SuperResolver, case: Case, folder: Path, progress: Callable[[float], None], spacing: Spacing
) -> Refined:
    if is_volume(case.image):
        return super_resolve_volume(resolver, case.image, folder, case.key, progress, spacing)
    return super_resolve_picture(resolver, case.image, folder, case.key, progress)


# --- which inputs -----------------------------------------------------------------------------------------------------


def find_images(source: str | Path, *, exclude: str | Path | None = None) -> list[Case]:
    """The pictures and volumes at ``source``: a file, or a folder searched recursively.

    Whatever lies below ``exclude`` is left out, and so are label maps (by name, folder or content) and results of
    earlier runs; results mirror the folders of the inputs. Of files in one folder that differ in their suffix alone,
    all but the first get an error, as their results would overwrite each other's.

    Raises:
        InputError: when there is none.
    """
    source = Path(source)
    known = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)
    remedy = f"Give pictures or volumes named {', '.join(known)}"
    if source.is_file():
        if not is_named(source, (*known, *PAIR_VOXELS)):
            raise InputError("is named neither as a picture nor as a volume", path=source, remedy=remedy)
        return [Case(source, _name(source))]
    if not source.is_dir():
        raise InputError("there is no such file or folder", path=source, remedy="Check the path")
    files = _files(source, None if exclude is None else Path(exclude))
    if not files:
        raise InputError("holds no picture and no volume", path=source, remedy=remedy)
    cases: dict[str, Case] = {}
    namesakes = []
    for path in files:
        folder = path.relative_to(source).parent
        key = (folder / _name(path)).as_posix()
        if key in cases:
            error = InputError(f"has the name of {cases[key].image.name}", path=path, remedy="Rename one of the two")
            namesakes.append(Case(path, path.relative_to(source).as_posix(), folder, error))
        else:
            cases[key] = Case(path, key, folder)
    return [*cases.values(), *namesakes]


def _files(source: Path, exclude: Path | None) -> list[Path]:
    left_out = {path for paths in _left_out(source, exclude).values() for path in paths}
    files = sorted({*_pictures(source), *volume_files(source)} - left_out)
    return [path for path in files if not _lies_below(path, exclude)]


def _pictures(source: Path) -> list[Path]:
    try:
        return [Path(item["image"]) for item in image_datalist(source)]
    except InputError:
        return []


def _left_out(source: Path, exclude: Path | None) -> dict[str, list[Path]]:
    """Files of a folder that are no inputs, by reason: label maps, and what earlier runs made outside ``exclude``."""
    if not source.is_dir():
        return {}
    found = survey(source, exclude).left_out
    made = [path for path in _pictures(source) if is_result(path) and not _lies_below(path, exclude)]
    by_reason = {LABEL_MAPS: found.get(LABEL_MAPS, []), RESULTS: [*found.get(RESULTS, []), *made]}
    return {reason: paths for reason, paths in by_reason.items() if paths}


def _lies_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _name(path: Path) -> str:
    return case_name(path) if is_volume(path) else path.stem
