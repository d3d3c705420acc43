"""What holds the house together: imports run one way, every package is installed, the command starts fast."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coremat.methods.registry import modules

ROOT = Path(__file__).parent.parent
FOLDERS = {"coremat": "coremat", "cli": "coremat.cli", "tasks": "coremat.tasks", "results": "coremat.results"}
LEVELS = [
    {
        "coremat.checks",
        "coremat.environment",
        "coremat.errors",
        "coremat.fingerprint",
        "coremat.hooks",
        "coremat.memory",
        "coremat.names",
        "coremat.progress",
        "coremat.tensors",
        "coremat.timers",
    },
    {"coremat.ffn", "coremat.models.known", "coremat.models.shape"},
    {"coremat.methods", "coremat.preprocessing"},
    {"coremat.models"},
    {"coremat.cost"},
    {"coremat.runtime"},
    {
        "coremat.decoding",
        "coremat.fidelity",
        "coremat.generate",
        "coremat.hardware",
        "coremat.offload",
        "coremat.overlay",
    },
    {"coremat.bench"},
    {"coremat.tasks"},
    {"coremat.testing"},  # for checks: nothing that runs imports it, but the command that runs checks
    {"coremat.cli"},
]
RESULTS_MAY_IMPORT = {"coremat.results", "coremat.errors", "coremat.names"}


def module_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def level_of(module: str) -> int | None:
    """That of the module itself, or of the package that it is in."""
    for own in (module, ".".join(module.split(".")[:2])):
        for number, names in enumerate(LEVELS):
            if own in names:
                return number
    return None


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in found if name.split(".")[0] == "coremat"}


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    module = module_name(path)
    if module.startswith("coremat.results"):
        assert all(name.startswith(tuple(RESULTS_MAY_IMPORT)) for name in imported(path))
        return
    own = level_of(module)
    if own is None:
        assert module in ("coremat", "coremat.models.shapes_llava"), f"{module} has no level"
        return
    above = [name for name in imported(path) if (level_of(name) or 0) > own]
    assert not above, f"{module} imports from above: {above}"


def test_the_session_names_no_method() -> None:
    """But for the paper's, which `apply` takes where nothing is said."""
    named = {
        (module_name(path), node.value)
        for path in sources()
        if module_name(path).startswith(("coremat.runtime", "coremat.cost", "coremat.decoding", "coremat.ffn"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in modules()
    }
    assert named == {("coremat.runtime.session", "corematching")}


def test_every_package_is_listed() -> None:
    """A package that is not listed works when installed editable and is missing from the wheel."""
    listed = {
        line.strip().strip('",')
        for line in (ROOT / "pyproject.toml").read_text().split("packages = [", 1)[1].split("]", 1)[0].splitlines()
        if line.strip()
    }
    there = {module_name(path) for path in sources() if path.name == "__init__.py"}
    assert listed == there


HEAVY = ("torch", "transformers", "pandas", "matplotlib", "lmms_eval", "datasets")
# seconds; "list methods" asks the classes, which stand beside their mathematics and bring torch along
QUICK = {"--help": 0.5, "eval --help": 0.5, "list models": 1.0, "list tasks": 1.0}
COMMAND = """
import sys
from coremat.cli.main import main
sys.argv = ["coremat", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("command", QUICK)
def test_what_needs_no_model_is_quick(command: str) -> None:
    """Nothing heavy is imported from start to end; the best time of three, since other work may run beside it."""
    code, times = COMMAND.format(heavy=HEAVY), []
    for _ in range(3):
        before = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *command.split()], check=True, capture_output=True, text=True
        )
        times.append(time.perf_counter() - before)
        assert done.stderr.splitlines()[-1].split() == ["loaded:"]
    assert min(times) < QUICK[command] or sys.gettrace() is not None


def test_import_coremat_needs_no_lmms_eval() -> None:
    code = "import sys; sys.modules['lmms_eval'] = None; import coremat; coremat.apply; import coremat.models.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_coremat_loads_no_models() -> None:
    """What is there for checks alone, and the libraries behind it, wait until they are asked for."""
    code = "import sys, coremat; print({'torch', 'transformers', 'coremat.testing'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "set()"
