"""The import arrows of the package point downwards, and its front door stays light."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPO, load_script

import cgdpm_med

PACKAGE = REPO / "cgdpm_med"
GROUND = ("networks", "diffusion")
FLOOR = ("files", "console")
ROOMS = (
    "tables",
    "runtime",
    "volumes",
    "models",
    "images",
    "data",
    "datasets",
    "phantom",
    "metrics",
    "inference",
    "training",
    "studies",
    "report",
    "heart",
    "evaluation",
)
# each may import what stands before it; modules of one folder may import each other without a cycle
ORDER = (*FLOOR, *GROUND, *ROOMS, "apps")
COMMAND_LINE = ("cgdpm_med.apps.cli", "cgdpm_med.apps.commands")  # the top of "apps"
GROUND_NEEDS = {"torch", "numpy"}
# modules that are imported where what they need is installed: PyTorch's builds for CUDA bring Triton
OPTIONAL = {"cgdpm_med.runtime.fused_norm": {"triton"}}


def module_files() -> dict[str, Path]:
    """Module name -> file, for every module of the package but the front door."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del files["cgdpm_med"]
    return files


MODULES = module_files()


def imported_names(source: str, package: str) -> Iterator[str]:
    """Dotted names that ``source`` imports anywhere, inside functions too; ``package`` resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def storey(module: str) -> str:
    """The folder or room of a dotted name below ``cgdpm_med``."""
    return module.split(".")[1]


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What the imports of one module do against the order, as readable sentences."""
    found = []
    for name in imported_names(source, module if is_package else module.rpartition(".")[0]):
        root, *rest = name.split(".")
        if root != "cgdpm_med":
            needs = sys.stdlib_module_names | GROUND_NEEDS | OPTIONAL.get(module, set()) | {"__future__"}
            if storey(module) in GROUND and root not in needs:
                found.append(f"{module} imports {root}: the ground folders need {sorted(GROUND_NEEDS)} only")
        elif not rest or rest[0] not in ORDER:
            if rest != ["__version__"]:
                found.append(f"{module} imports {name}: inside the package, import from the defining module")
        elif storey(name) != storey(module) and ORDER.index(storey(name)) > ORDER.index(storey(module)):
            found.append(f"{module} imports {name}: the arrow points upwards")
        elif name.startswith(COMMAND_LINE) and not module.startswith(COMMAND_LINE):
            found.append(f"{module} imports {name}: the command line stands on top of the applications")
    return found


def test_every_module_has_a_place_in_the_order() -> None:
    assert {storey(module) for module in MODULES} <= set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_downwards(module: str) -> None:
    path = MODULES[module]
    assert violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("cgdpm_med.networks.unet", "from cgdpm_med.diffusion.schedule import NoiseSchedule", "upwards"),
        ("cgdpm_med.volumes", "def f():\n    import cgdpm_med.data.acdc", "upwards"),
        ("cgdpm_med.training.engines", "from cgdpm_med.apps import segment", "upwards"),
        ("cgdpm_med.diffusion.losses", "from ..volumes import InputError", "upwards"),
        ("cgdpm_med.diffusion.losses", "from monai.losses import DiceLoss", "ground"),
        ("cgdpm_med.inference.segmenter", "from cgdpm_med import NoiseSchedule", "defining module"),
        ("cgdpm_med.inference.segmenter", "import cgdpm_med", "defining module"),
        ("cgdpm_med.apps.info", "from cgdpm_med.apps.cli import app", "on top"),
    ],
)
def test_a_wrong_arrow_is_noticed(module: str, source: str, complaint: str) -> None:
    (found,) = violations(module, source)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cgdpm_med.diffusion.sampling", "import math\nimport numpy as np\nfrom .schedule import NoiseSchedule"),
        ("cgdpm_med.data.acdc", "from cgdpm_med.files import InputError\nfrom monai.data import CacheDataset"),
        (
            "cgdpm_med.apps.info",
            "from cgdpm_med import __version__\nfrom cgdpm_med.inference.bundles import bundle_path",
        ),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


# --- the heart is one task --------------------------------------------------------------------------------------------

ANATOMY = re.compile(
    r"\bACDC_LABELS\b|\b(?:LV|RV|Myo|EF|EDV|ESV)\b|\b_?(?:lv|rv|myo)(?:_\w+)?\b"
    r"|ventric|myocard|ejection|cardiac|systol|diastol|\bheart",
    re.IGNORECASE,
)
# the plug-in, the applications that wire it, the heart that is drawn, the data set, and what people call its labels
OF_THE_HEART = ("heart", "apps", "phantom", "data.acdc", "data.structure_names")
# how files and scanners speak of time and place in a heart, whatever is segmented; and the plug-in's address
WORDS_OF_FILES = {
    "volumes.orientation": {"heart"},
    "volumes.dicom": {"heart", "cardiac"},
    "studies.phases": {"diastol", "systol"},
    "studies.cases": {"diastol", "systol"},
    "studies.task": {"heart"},
}


def anatomy(module: str, source: str) -> list[str]:
    """The words of the heart in a module of the package that should know none."""
    name = module.removeprefix("cgdpm_med.")
    if name.startswith(OF_THE_HEART):
        return []
    allowed = {word for place, words in WORDS_OF_FILES.items() if name.startswith(place) for word in words}
    return [f"{module}: {word}" for word in ANATOMY.findall(source) if word.lower() not in allowed]


@pytest.mark.parametrize("module", MODULES)
def test_no_anatomy_outside_the_rooms_of_the_heart(module: str) -> None:
    assert anatomy(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_templates_of_every_page_know_no_anatomy() -> None:
    files = [file for file in (PACKAGE / "report").rglob("*") if file.suffix in {".j2", ".css"}]
    assert files
    assert [found for file in files for found in anatomy(file.name, file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    ["from cgdpm_med.data.acdc import ACDC_LABELS", "_LV = 3", "if labels.cardiac:", '"the myocardium"', "lv_ml = 3.0"],
)
def test_anatomy_is_noticed(source: str) -> None:
    assert anatomy("cgdpm_med.evaluation.masks", source)
    assert anatomy("cgdpm_med.heart.function", source) == []


def test_the_left_ventricle_has_its_number_in_one_place() -> None:
    numbered = re.compile(r"^_?(?:\w+, )*_?LV(?:, \w+)* = (?:\d, )*3|\b_?LV\b: \w+ = 3", re.MULTILINE)
    there = [module for module, path in MODULES.items() if numbered.search(path.read_text(encoding="utf-8"))]
    assert there == ["cgdpm_med.heart.structures"]


def test_no_import_cycle() -> None:
    graph = {}
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported_names(path.read_text(encoding="utf-8"), package)
        # "from a.b import c" names the module a.b.c or, where there is none, the module a.b
        targets = {name if name in MODULES else name.rpartition(".")[0] for name in names}
        graph[module] = targets & MODULES.keys() - {module}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError, naming the cycle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cgdpm_med", {"torch", "numpy", "monai"}),
        ("import cgdpm_med.diffusion, cgdpm_med.networks", {"monai", "ignite", "nibabel", "SimpleITK", "matplotlib"}),
        ("from cgdpm_med import DiffusionPredictor", {"monai", "ignite", "nibabel", "scipy", "SimpleITK", "pydicom"}),
        ("from cgdpm_med import read_volume", {"torch", "monai", "SimpleITK", "cgdpm_med.volumes.nrrd"}),
        ("from cgdpm_med import segment", {"SimpleITK", "jinja2", "highdicom", "cgdpm_med.report.case"}),
    ],
)
def test_light_imports(statement: str, absent: set[str]) -> None:
    # every module of the ground folders, not only what their __init__ happens to import
    ground = [
        f"import {module}"
        for module in MODULES
        if "diffusion" in statement and storey(module) in GROUND and module not in OPTIONAL
    ]
    program = "; ".join([statement, *ground, "import sys; print(*sys.modules)"])
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO, check=True)
    assert absent & set(run.stdout.split()) == set()


def test_the_front_door_is_narrow() -> None:
    """At most 100 names, each used by a configuration, a document, a script or a benchmark."""
    names, unused = load_script("house").front_door()
    assert set(names) == set(cgdpm_med.__all__) - {"__version__"}
    assert len(names) <= 100
    assert unused == []


@pytest.mark.parametrize("name", cgdpm_med.__all__)
def test_front_door_names_resolve(name: str) -> None:
    value = getattr(cgdpm_med, name)
    defined_in = vars(cgdpm_med)["_EXPORTS"].get(name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith(f"cgdpm_med.{defined_in}")


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(cgdpm_med.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    seen = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(stub))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"cgdpm_med.{module}" for name, module in vars(cgdpm_med)["_EXPORTS"].items()}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cgdpm_med.no_such_name  # type: ignore[attr-defined]  # this is what is tested


def defines(name: str) -> bool:
    """Whether the last part of a dotted name below the package is public and defined by the module before it."""
    module, _, last = name.rpartition(".")
    made = getattr(importlib.import_module(f"cgdpm_med.{module}"), last, None) if module else None
    return not last.startswith("_") and getattr(made, "__module__", None) == f"cgdpm_med.{module}"


def test_bundles_name_what_there_is() -> None:
    """The front door's names, or public ones of the module that defines them."""
    unknown = {
        f"{config.relative_to(REPO)}: cgdpm_med.{name}"
        for folder in ("bundles", "recipes", "configs")
        for config in (REPO / folder).rglob("*")
        if config.suffix in {".json", ".yaml", ".yml"}
        for name in re.findall(r"\bcgdpm_med\.([A-Za-z_][\w.]*)", config.read_text(encoding="utf-8"))
        if name.split(".")[0] not in cgdpm_med.__all__ and not defines(name)
    }
    assert unknown == set()


def test_names_that_stay_free() -> None:
    assert list(PACKAGE.rglob("utils*.py")) == []
    # a package named scripts at the root would shadow the scripts package of a bundle
    assert not (REPO / "scripts" / "__init__.py").exists()


def test_the_page_of_the_architecture_names_what_there_is() -> None:
    page = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([\w.]+)(?:\([^`]*\))?` \| (\w+/\w+\.py) \|$", page, re.MULTILINE)
    assert len(rows) >= 12
    for name, file in rows:
        source = (PACKAGE / file).read_text(encoding="utf-8")
        assert re.search(rf"\b(?:def|class) {name.rpartition('.')[2]}\b", source), (name, file)
    rooms = re.findall(r"^(\w+)/? {2,}\S", page.split("```")[1].replace(".py", ""), re.MULTILINE)
    assert set(ORDER) - set(rooms) == {"console"}
    assert [room for room in ORDER if room in rooms] == rooms[::-1]
