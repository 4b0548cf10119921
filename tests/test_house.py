"""The rules of the house, read off the files: which way imports run, and that every list names the same formats."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit as lb
from lowbit import reference
from support import EXAMPLES, FORMATS, slug

ROOT = Path(__file__).resolve().parent.parent

#: The layers of src, lowest first: a module may use its own layer's earlier modules and every lower layer.
LAYERS = [
    {"error", "cpu", "stream", "parallel", "simd", "pack", "rans", "view"},
    {"formats", "scale"},
    {"quantize", "fwht", "onebit", "clip", "convex", "optim", "qtorch"},
    {"message", "gemm"},
    {"py"},
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}


def rust_files() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.rs"))


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".rs")


@pytest.mark.parametrize("path", rust_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rust_imports_run_one_way(path: Path) -> None:
    module = module_of(path)
    if module == "lib":
        return
    assert module in DEPTH, f"{module} has no layer: give it one above"
    # Tests at the end of a file may look anywhere.
    text = path.read_text().split("#[cfg(test)]")[0]
    used = set(re.findall(r"\bcrate::(\w+)", text))
    for group in re.findall(r"use crate::\{([^}]*)\}", text):
        used |= set(re.findall(r"(?:^|,)\s*(\w+)", group))
    upward = {name for name in used if name in DEPTH and DEPTH[name] > DEPTH[module]}
    assert not upward, f"{module} (layer {DEPTH[module]}) imports {upward}"


def test_only_the_binding_names_pyo3_and_numpy() -> None:
    for path in rust_files():
        if module_of(path) != "py":
            assert not re.search(r"\b(pyo3|numpy)::", path.read_text()), path


def test_intrinsics_stay_where_they_are_measured() -> None:
    for path in rust_files():
        if module_of(path) not in {"simd", "fwht", "gemm", "cpu"}:
            assert "std::arch" not in path.read_text(), path


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


#: What a module, or a package's modules, may import when used: the extras of pyproject.toml.
EXTRAS = {"plot.py": {"matplotlib"}, "_watch.py": {"matplotlib"}, "torch": {"torch"}, "flower": {"flwr"}}


def test_the_package_needs_only_numpy_and_safetensors() -> None:
    package = ROOT / "python" / "lowbit"
    for path in package.rglob("*.py"):
        allowed = {"lowbit", "numpy", "safetensors", *sys.stdlib_module_names}
        allowed |= EXTRAS.get(path.name, set()) | EXTRAS.get(path.relative_to(package).parts[0], set())
        foreign = {name for name in imported(path) if name.split(".")[0] not in allowed}
        assert not foreign, f"{path.name} imports {foreign}"


def test_the_core_does_not_know_the_layers_above() -> None:
    package = ROOT / "python" / "lowbit"
    for path in package.rglob("*.py"):
        for layer in ("torch", "flower"):
            if path.relative_to(package).parts[0] != layer:
                assert not {name for name in imported(path) if name.startswith(f"lowbit.{layer}")}, path


def test_importing_the_package_imports_no_extra() -> None:
    extras = sorted(set().union(*EXTRAS.values()))
    script = f"import sys, lowbit; print([name for name in {extras} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("layer", "module", "project"), [("torch", "torch", "PyTorch"), ("flower", "flwr", "Flower")])
def test_a_layer_says_what_it_needs(layer: str, module: str, project: str) -> None:
    script = f"import sys; sys.modules['{module}'] = None; import lowbit.{layer}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.endswith(f"ModuleNotFoundError: lowbit.{layer} needs {project}: pip install 'lowbit[{layer}]'\n")


def test_reference_is_a_second_opinion() -> None:
    """It computes everything itself."""
    for path in (ROOT / "python/lowbit/reference").glob("*.py"):
        ours = {name for name in imported(path) if name.split(".")[0] == "lowbit"}
        assert all(name.startswith("lowbit.reference") for name in ours), path


def readme_row(fmt: lb.Format, call: str | None = None) -> str:
    """Write a format's row of the README's tables: of the registered ones, or of what a factory makes by `call`."""
    if fmt.coded:
        values = f"{len(fmt.values)} from {fmt.values[0]:.6g} to {fmt.max:.6g}, smallest {fmt.smallest:.3g}"
    else:
        values = f"to {fmt.max:.3g}, smallest {fmt.smallest:.3g}; no codes"
    others = [rule for rule in fmt.scale_rules if rule != fmt.default_scale]
    rules = ", ".join([fmt.default_scale, *others])
    blocks = "" if fmt.default_block is None else f"; blocks of {fmt.default_block}"
    blocks += "" if fmt.scale_format is None else f"; {fmt.scale_format.upper()}"
    names, end = (f"`{fmt.name}`", f" {fmt.source} |") if call is None else (f"`lb.{call}` | `{fmt.name}`", "")
    return f"| {names} | {fmt.bits} | {values} | {rules}{blocks} |{end}"


def test_every_list_names_the_same_formats() -> None:
    names = lb.formats()
    typed = re.search(
        r"FormatName: TypeAlias = Literal\[(.*?)\]", (ROOT / "python/lowbit/_formats.py").read_text(), re.S
    )
    assert typed is not None
    assert re.findall(r'"(\w+)"', typed[1]) == names
    assert list(reference.FORMATS) == names
    golden = {path.stem.removeprefix("quantize-v1-") for path in (ROOT / "tests/golden").glob("quantize-v1-*.json")}
    assert golden == {slug(name) for name in FORMATS}, "golden files"
    for name in FORMATS:
        assert lb.get_format(name).name == name


def test_the_readmes_tables_are_the_registry_and_what_factories_make() -> None:
    page = (ROOT / "README.md").read_text()
    section = page[page.index("\n## Formats\n") : page.index("\n## One number in one bit\n")]
    rows = re.findall(r"^\| `\w+` \|.*$", section, re.M)
    assert rows == [readme_row(lb.get_format(name)) for name in lb.formats()]
    made = re.findall(r"^\| `lb\.(.*?)` \|.*$", section, re.M)
    formats = [eval(f"lb.{call}", {"lb": lb}) for call in made]
    assert [fmt.name for fmt in formats] == EXAMPLES
    rows = re.findall(r"^\| `lb\..*$", section, re.M)
    assert rows == [readme_row(fmt, call) for fmt, call in zip(formats, made, strict=True)]


def test_public_names_have_docstrings_with_examples() -> None:
    for name in lb.__all__:
        thing = getattr(lb, name)
        if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
            assert ">>>" in (thing.__doc__ or ""), name


@pytest.mark.parametrize("public", ["Format", "formats", "get_format", "get_num_threads", "set_num_threads"])
def test_the_cores_examples_are_executed(public: str) -> None:
    """Pytest collects examples from Python files only."""
    thing = getattr(lb, public)
    threads = lb.get_num_threads()
    try:
        for example in doctest.DocTestFinder(recurse=False).find(thing, public, module=False, globs={}):
            report: list[str] = []
            assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
    finally:
        lb.set_num_threads(threads)


def test_every_getter_of_a_format_says_what_it_is() -> None:
    getters = [name for name in dir(lb.Format) if not name.startswith("_")]
    assert "scale_rules" in getters
    for name in getters:
        assert getattr(lb.Format, name).__doc__, name


def test_files_stay_small() -> None:
    for path in [*rust_files(), *(ROOT / "python").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 500, f"{path} is over 500 lines: split it, or argue for it here"
