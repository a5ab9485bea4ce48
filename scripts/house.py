#!/usr/bin/env python3
"""Figures of how the code stands: what a reader meets before the idea. One line each; nothing is judged.

python scripts/house.py             # this checkout
python scripts/house.py --trace     # and the files that segmenting one volume walks through (half a minute)
python scripts/house.py --times     # and the CPU seconds of --help and of segmenting one volume, in fresh processes

A file is walked if one of its functions runs, from the call of ``segment`` to its end; what runs once at import, bodies
of modules and classes and what they call, does not count. The volume is one NIfTI file, without a page.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "cgdpm_med"
ENCODING = ("encode_condition", "encode")
MACHINERY = re.compile(r"is_cpu|is_cuda|is_grad_enabled|is_compiling|torch\.compile|cuda|autocast|channels_last|mkldnn")
PLAIN_ROOMS = ("networks", "diffusion")
# Conventions of MONAI's bundles, and what belongs to a run and its data: weights trained with another seed or in
# another precision are sampled as well with this one, and a split that puts training patients among the tested ones is
# noticed.
COMMON_KEYS = ("imports", "bundle_root", "device", "network", "initialize", "precision", "seed", "split")
TRAINING, USE = ("train", "train_guidance"), ("inference", "evaluate")


def sources(folder: Path = PACKAGE) -> Iterator[Path]:
    """Python files below ``folder``."""
    return (path for path in sorted(folder.rglob("*.py")))


def encodings() -> list[str]:
    """Definitions of the encoding of a condition, as class and function."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            body = node.body if isinstance(node, (ast.ClassDef, ast.Module)) else []
            owner = node.name if isinstance(node, ast.ClassDef) else path.stem
            found += [f"{owner}.{f.name}" for f in body if isinstance(f, ast.FunctionDef) and _of_condition(f)]
    return sorted(found)


def _of_condition(function: ast.FunctionDef) -> bool:
    """Not the encoding of a target, which takes its truth first."""
    arguments = [a.arg for a in function.args.args if a.arg != "self"]
    return function.name in ENCODING and "truth" not in arguments


def machinery() -> Counter[str]:
    """Lines of code (without comments and docstrings) in the plain rooms that ask about machines, by file."""
    found: Counter[str] = Counter()
    for room in PLAIN_ROOMS:
        for path in sources(PACKAGE / room):
            code = ast.unparse(_without_docstrings(ast.parse(path.read_text(encoding="utf-8"))))
            lines = [line for line in code.splitlines() if MACHINERY.search(line)]
            if lines:
                found[str(path.relative_to(PACKAGE))] = len(lines)
    return found


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_text(n)] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def configurations() -> dict[str, Any]:
    """Every YAML of bundles and configs, by its path."""
    paths = [
        *REPO.glob("bundles/*/configs/*.yaml"),
        *REPO.glob("recipes/*/configs/*.yaml"),
        *REPO.glob("configs/**/*.yaml"),
    ]
    return {str(p.relative_to(REPO)): yaml.safe_load(p.read_text(encoding="utf-8")) or {} for p in sorted(paths)}


def mask_scales() -> dict[str, int]:
    """How often a configuration names the scale of the mask."""
    counts = {name: (REPO / name).read_text(encoding="utf-8").count("mask_scale") for name in configurations()}
    return {name: count for name, count in counts.items() if count}


def equal_by_hand(bundle: Path) -> list[str]:
    """Keys that training and use of a bundle both state, with equal values."""
    found = {name: _stated(bundle, name) for name in (*TRAINING, *USE)}
    pairs = ((found[train], found[use]) for train in TRAINING for use in USE)
    return sorted({key for train, use in pairs for key in train.keys() & use.keys() if train[key] == use[key]})


def _stated(bundle: Path, name: str) -> dict[str, Any]:
    path = bundle / "configs" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in content.items() if key not in COMMON_KEYS}


def shares() -> dict[str, float]:
    """Each folder's part of the package's lines."""
    lines: Counter[str] = Counter()
    for path in sources():
        inside = path.relative_to(PACKAGE).parts
        lines[inside[0] if len(inside) > 1 else "(top)"] += len(path.read_text(encoding="utf-8").splitlines())
    total = sum(lines.values())
    return {folder: count / total for folder, count in lines.most_common()}


def front_door() -> tuple[list[str], list[str]]:
    """Public names, and those of them that no configuration, document or script outside the package uses."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    tables = [n.value for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and _name(n.target) == "_EXPORTS"]
    names = [str(ast.literal_eval(key)) for table in tables if isinstance(table, ast.Dict) for key in table.keys if key]
    places = [
        path
        for folder in ("bundles", "recipes", "configs", "docs", "scripts", "benchmarks")
        for path in (REPO / folder).rglob("*")
    ]
    read = [path for path in (*places, REPO / "README.md") if path.suffix in (".yaml", ".md", ".py")]
    words = {word for path in read for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    return names, [name for name in names if name not in words]


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def walked() -> tuple[set[str], int]:
    """Files of the package whose functions segmenting one volume runs, and how often one gives way to another."""
    from cgdpm_med import Options, segment

    files: set[str] = set()
    steps, here = 0, ""

    def follow(frame: Any, event: str, _: Any) -> None:
        nonlocal steps, here
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PACKAGE)) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            steps, here = steps + (name != here), name
            inside = str(Path(name).relative_to(PACKAGE))
            if inside not in files and not _at_import(frame):
                files.add(inside)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        volume = phantom_volume(folder)
        sys.setprofile(follow)
        try:
            segment(volume, folder / "out", device="cpu", members=1, steps=1, options=Options(pages=False))
        finally:
            sys.setprofile(None)
    return files, steps


def phantom_volume(folder: Path) -> Path:
    """One small NIfTI file below ``folder``."""
    from cgdpm_med import write_phantom_dataset

    write_phantom_dataset(folder, [901], seed=0, shape=(64, 56, 3), spacing=(2.8, 2.8, 24.0), num_frames=3)
    return next(folder.rglob("*frame01.nii.gz"))


def command_seconds(*words: str) -> float:
    """CPU seconds of ``cgdpm-med`` in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "cgdpm_med.apps.cli", *words]
    subprocess.run(command, env=environment, cwd=REPO, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def volume_seconds() -> float:
    """:func:`command_seconds` of segmenting one volume with the shipped settings."""
    with tempfile.TemporaryDirectory() as place:
        volume = phantom_volume(Path(place))
        return command_seconds("segment", str(volume), str(Path(place) / "out"), "--device", "cpu", "--no-report")


def _at_import(frame: Any) -> bool:
    """Whether the body of one of the package's modules is running further out."""
    while (frame := frame.f_back) is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            return True
    return False


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="store_true", help="segment a phantom and count files")
    parser.add_argument("--times", action="store_true", help="time --help and one volume")
    arguments = parser.parse_args()
    encoders, machines, scales = encodings(), machinery(), mask_scales()
    print(f"definitions of condition encoding: {len(encoders)} ({', '.join(encoders)})")
    print(f"machinery in {' and '.join(PLAIN_ROOMS)}: {machines.total()} lines ({_listed(machines)})")
    print(f"mask_scale, most in one configuration: {max(scales.values(), default=0)} ({_listed(scales)})")
    for bundle in sorted([*REPO.glob("bundles/*/configs/train.yaml"), *REPO.glob("recipes/*/configs/train.yaml")]):
        keys = equal_by_hand(bundle.parents[1])
        print(f"equal by hand in {bundle.parents[1].name}: {len(keys)} ({', '.join(keys)})")
    print("share of the package: " + ", ".join(f"{folder} {share:.0%}" for folder, share in shares().items()))
    names, unused = front_door()
    print(f"front door: {len(names)} names, {len(unused)} used nowhere outside ({', '.join(unused)})")
    if arguments.trace:
        files, steps = walked()
        rooms = Counter(file.partition("/")[0] for file in files)
        lines = sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files)
        print(f"segment of one volume: {len(files)} files of {lines} lines, {steps} changes of file ({_listed(rooms)})")
    if arguments.times:
        print(f"CPU seconds: --help {command_seconds('--help'):.2f}, one volume {volume_seconds():.1f}")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


if __name__ == "__main__":
    main()
