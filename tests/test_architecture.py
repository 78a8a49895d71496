"""The rules of the house that can be read off the code: who imports whom, what is never called."""

import ast
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_FILES = 16  # of code in a folder
ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "config": {"config"},
    "util": {"util", "config"},
    "model": {"model", "util", "config"},
    "dataset": {"dataset", "util", "config"},
    "stripseg": {"stripseg", "config", "model", "util", "dataset"},
    "tool": {"tool", "stripseg", "config", "model", "util", "dataset"},
}
FILES = sorted(
    path for folder in (*MAY_IMPORT, "tests", "benchmark") for path in (ROOT / folder).rglob("*.py")
)
IN_PACKAGE = [path for path in FILES if path.relative_to(ROOT).parts[0] in MAY_IMPORT]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported_folders(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """(folder of ours, was the import relative?) of every import in a file of a package.

    `package` is the path of its folder below the checkout, such as `util/training`.
    """
    inside = ["stripseg", *package.split("/")] if package != "stripseg" else ["stripseg"]
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not is_main_guard(node)]  # run as a program
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) + 1 - node.level]
            below = [node.module] if node.module else [alias.name for alias in node.names]
            names = [(".".join([*base, name]), True) for name in below]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [(module, False)]
            if module == "stripseg":
                names = [(f"stripseg.{alias.name}", False) for alias in node.names]
        else:
            continue
        for name, relative in names:
            top, *below = name.split(".")
            if top == "stripseg" and below:
                room = below[0] if below[0] in MAY_IMPORT else "stripseg"
                yield "stripseg inside stripseg" if below[0] == "stripseg" else room, relative
            elif top in MAY_IMPORT:  # `import model.spnet`: an accidental second copy
                yield f"{top} without stripseg", relative


def wrong_imports(source: str, package: str) -> list[str]:
    folder = package.split("/")[0]
    wants_relative = folder != "tool"
    wrong = []
    for target, relative in imported_folders(source, package):
        if target not in MAY_IMPORT[folder]:
            wrong.append(f"{folder} imports {target}")
        elif relative != wants_relative:
            wrong.append(f"{folder} imports {target} {'relatively' if relative else 'by name'}")
    return wrong


@pytest.mark.parametrize("path", IN_PACKAGE, ids=named)
def test_imports_keep_to_the_layers(path: Path) -> None:
    if path == ROOT / "stripseg/__main__.py":  # `python -m stripseg`: only starts tool/main.py
        return
    assert wrong_imports(path.read_text(), path.relative_to(ROOT).parent.as_posix()) == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("model", "from ..dataset.lists import read_list"),
        ("model", "from stripseg.util import images"),
        ("dataset", "def f():\n    from ..model import spnet"),
        ("util", "import stripseg.model.spnet"),
        ("config", "from ..util.images import read_image"),
        ("util", "from ..tool import train"),
        ("util/training", "from ...model import spnet"),
        ("util/training", "from ...command_line import launch"),
        ("stripseg", "from .tool.train import main"),
        ("stripseg", "from .stripseg.build import load_engine"),
        ("tool", "from .train import main"),
        ("tool", "import model.spnet"),
        ("model", "from .. import dataset"),
    ],
)
def test_a_wrong_import_is_found(folder: str, source: str) -> None:
    assert wrong_imports(source, folder)


def test_a_right_import_is_none() -> None:
    assert (
        wrong_imports("from ..util import distributed\nfrom .layers import resize", "model") == []
    )
    assert wrong_imports("from ..distributed import process_group", "util/training") == []
    assert wrong_imports("from ...config.schema import Config", "util/training") == []
    assert wrong_imports("from .util.training.trainer import Trainer", "stripseg") == []
    assert wrong_imports("from stripseg.model.build import build_segmenter", "tool") == []
    assert wrong_imports("from stripseg.command_line import launch", "tool") == []


def unsafe_calls(source: str) -> list[str]:
    """torch.load without weights_only=True, YAML that can make objects, eval and exec."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"):
            loader = options.get("Loader", ast.unparse(node.args[1]) if node.args[1:] else "")
            if "safe" not in loader.lower() and f"class {loader}(yaml.SafeLoader)" not in source:
                found.append(name)
        if name in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"):
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_that_is_read_can_run_code(path: Path) -> None:
    assert unsafe_calls(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t, yaml.Loader)", "eval(x)"],
)
def test_an_unsafe_call_is_found(source: str) -> None:
    assert unsafe_calls(source)


@pytest.mark.parametrize("path", IN_PACKAGE, ids=named)
def test_files_say_what_they_are(path: Path) -> None:
    source = path.read_text()
    assert not source or ast.get_docstring(ast.parse(source))


def test_folders_can_be_taken_in_at_a_glance() -> None:
    """No more than 16 files of code in any of them."""
    files = Counter(path.parent for path in IN_PACKAGE if path.name != "__init__.py")
    assert {named(folder): count for folder, count in files.items() if count > MOST_FILES} == {}


def test_every_folder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folders inside it."""
    asked: dict = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **options: asked.update(options))
    runpy.run_path("setup.py")
    folders = {path.parent for path in IN_PACKAGE}
    assert {Path(asked["package_dir"][package]) for package in asked["packages"]} == {
        folder.relative_to(ROOT) for folder in folders
    }
    assert all((folder / "__init__.py").is_file() for folder in folders)
