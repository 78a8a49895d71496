"""The rules of the house that can be read off the code: who imports whom, what is never called."""

import ast
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

MOST_FILES = 16  # of code in a folder; tool/ is a list of commands, one file each
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
    inside = ["stripseg", *package.removeprefix("stripseg").strip("/").split("/")]
    inside = [part for part in inside if part]
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


def test_imports_keep_to_the_layers() -> None:
    found = {
        named(path): wrong_imports(path.read_text(), path.relative_to(ROOT).parent.as_posix())
        for path in IN_PACKAGE
        if path != ROOT / "stripseg/__main__.py"  # `python -m stripseg`: only starts tool/main.py
    }
    assert {file: wrong for file, wrong in found.items() if wrong} == {}


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
        ("stripseg/report", "from ..tool.train import main"),
        ("stripseg/report", "from stripseg.util import images"),
        ("stripseg", "from .stripseg.engine import load_engine"),
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
    assert wrong_imports("from ..util.metrics import Scores", "stripseg/report") == []
    assert wrong_imports("from ..testing import TestResult", "stripseg/report") == []
    assert wrong_imports("from stripseg.model.build import build_segmenter", "tool") == []
    assert wrong_imports("from stripseg.command_line import launch", "tool") == []


# what can run code, start programs or open anything, and the only files that may name it
DANGEROUS = {
    "pickle": {
        "dataset/classification/cifar.py",
        "tests/test_checkpoint.py",
        "tests/test_cifar.py",
        "tests/test_fuzz.py",
        "tests/test_limits.py",
    },
    "subprocess": {
        "util/experiments/child_process.py",
        "tool/demo_run.py",
        "benchmark/memory.py",
        "benchmark/gpu_check.py",
        "benchmark/gpu_promises.py",
        "tests",
    },
    "exec": {"tests/test_checkpoint.py"},
    "__import__": {"tests/test_timm.py"},
    "runpy": {
        "tests/processes.py",
        "tests/test_architecture.py",
    },  # ours, in a process forked for it
    # of names in a table of our own
    "importlib": {
        "benchmark/__main__.py",
        "model/pretrained.py",  # finds packages, imports none
        "stripseg/__init__.py",
        "stripseg/quantization.py",  # finds a package, imports none
        "tool/main.py",
        "tests",
    },
    "os.execvp": {"tool/main.py"},  # itself, with the environment's settings
    "yaml.safe_load": {"dataset/description.py", "tests"},
    "torch.hub": {"model/pretrained.py"},  # where its cache is
    "torch.load": {"util/checkpoint.py", "tests"},  # with weights_only=True: see below
    "numpy.load": {"tests/compat/fixture.py"},  # without allow_pickle: see below
    "torch.export.load": {"stripseg/export.py", "tests"},  # what was written just before
    "ctypes": {"util/experiments/child_process.py"},  # the C library's prctl
    "PIL.Image.open": {"util/images.py", "tests"},
    "tarfile.open": {"dataset/results.py", "tests"},
    "zipfile.ZipFile": {"dataset/results.py", "util/checkpoint.py", "tests"},
}
MODULES = (
    "pickle _pickle marshal shelve dill cloudpickle joblib subprocess pty runpy importlib imp code "
    "codeop builtins posix ctypes lxml"
)
FUNCTIONS = {
    "yaml": "load load_all full_load full_load_all unsafe_load unsafe_load_all safe_load "
    "safe_load_all Loader UnsafeLoader FullLoader CLoader CUnsafeLoader CFullLoader loader cyaml",
    "torch": "load hub package jit.load serialization.load export.load utils.cpp_extension "
    "ops.load_library",
    "multiprocessing": "reduction",
    "numpy": "load fromregex",
    "pandas": "read_pickle",
    "PIL.Image": "open",
    "PIL.ImageFile": "Parser",
    "os": "system popen startfile posix_spawn posix_spawnp execl execle execlp execlpe execv "
    "execve execvp execvpe spawnl spawnle spawnlp spawnlpe spawnv spawnve spawnvp spawnvpe",
    "xml": "dom sax.parse sax.parseString sax.make_parser sax.expatreader parsers",
    "xml.etree.ElementTree": "parse fromstring fromstringlist iterparse XML XMLID XMLParser "
    "XMLPullParser",
    "asyncio": "create_subprocess_exec create_subprocess_shell",
    "tarfile": "open TarFile",
    "zipfile": "ZipFile",
    "shutil": "unpack_archive",
}
KNOWN_NAMES = {
    *MODULES.split(),
    *(f"{module}.{name}" for module, names in FUNCTIONS.items() for name in names.split()),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}


@cache
def dangerous_names(source: str) -> set[str]:
    """The modules and functions above that a file names, however it has imported them, and calls
    that are refused everywhere."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= known_in(alias.name)
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = whole
                found |= known_in(whole)
                if alias.name == "*":
                    found.add(f"everything of {node.module}")

    def whole_name(node: ast.AST) -> str:
        first, _, rest = ast.unparse(node).partition(".")
        return f"{aliases.get(first, first)}.{rest}" if rest else aliases.get(first, first)

    called_ones = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = whole_name(node)
            if name.partition(".")[0] in {value.partition(".")[0] for value in aliases.values()}:
                found |= known_in(name)
            if name == "torch.load" and id(node) not in called_ones:
                found.add("torch.load without weights_only=True")  # for a call elsewhere
            loaded = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            if loaded and node.id in BUILTINS:
                found.add(node.id)
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        called = whole_name(node.func)
        if called == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            found |= known_in(f"{whole_name(node.args[0])}.{node.args[1].value}")
        if called == "torch.load" and options.get("weights_only") != "True":
            found.add("torch.load without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            found.add("allow_pickle")
        if options.get("shell", "False") != "False":
            found.add("shell=True")
        if called.endswith((".extractall", ".extract")):
            found.add("extracting an archive")
    return found


def known_in(name: str) -> set[str]:
    """`name` or what it is a part of, where that is listed."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & KNOWN_NAMES


def not_allowed(source: str, file: str) -> set[str]:
    return {
        name
        for name in dangerous_names(source)
        if not {file, file.split("/")[0]} & DANGEROUS.get(name, set())
    }


def test_nothing_that_is_read_can_run_code() -> None:
    found = {named(path): not_allowed(path.read_text(), named(path)) for path in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_every_exception_is_needed() -> None:
    used = {
        (name, part)
        for path in FILES
        for name in dangerous_names(path.read_text())
        for part in (named(path), named(path).split("/")[0])
    }
    assert {(n, f) for n, files in DANGEROUS.items() for f in files} <= used


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "import torch as t\nt.load(p)",
        "from torch import load\nload(p)",
        "import torch\ntorch.hub.load(a, b)",
        "import yaml\nyaml.load(t, yaml.Loader)",
        "import yaml\nyaml.load(t, UnsafeLoader)",
        "import yaml\nyaml.load_all(t, yaml.Loader)",
        "import yaml\nyaml.unsafe_load_all(t)",
        "import pickle\npickle.Unpickler(f).load()",
        "from pickle import load\nload(f)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import joblib\njoblib.load(p)",
        "import marshal\nmarshal.loads(b)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "import tarfile\ntarfile.open(p).extractall()",
        "__import__('pickle').loads(b)",
        "import os\nos.system(c)",
        "from os import system",
        "from PIL import Image\nImage.open(p)",
        "from PIL.Image import open as read",
        "from pickle import *",
        "run = eval",
        "import builtins\nbuiltins.eval(x)",
        "import torch\nread = torch.load",
        "import torch\ngetattr(torch, 'load')(p)",
        "import torch\ntorch.serialization.load(p, weights_only=False)",
        "import torch\ntorch.export.load(p)",
        "import _pickle\n_pickle.loads(b)",
        "import yaml\nyaml.CUnsafeLoader(t).get_single_data()",
        "from yaml.loader import UnsafeLoader\nUnsafeLoader(t).get_single_data()",
        "import torch\ntorch.ops.load_library(p)",
        "import asyncio\nasyncio.create_subprocess_shell(c)",
        "import os\nos.spawnvp(0, c, [c])",
        "import posix\nposix.system(c)",
        "import ctypes\nctypes.CDLL(p)",
        "import xml.etree.ElementTree as tree\ntree.parse(p)",
        "from PIL import ImageFile\nImageFile.Parser()",
        "eval(x)",
    ],
)
def test_what_could_run_code_is_found(source: str) -> None:
    assert not_allowed(source, "dataset/new.py")


def test_where_checkpoints_are_read_no_code_is() -> None:
    """The one file that may name torch.load calls it with weights_only=True."""
    place = "util/checkpoint.py"
    for source in ("torch.load(p)", "read = torch.load", "map(torch.load, paths)"):
        assert not_allowed(f"import torch\n{source}", place)
    assert not not_allowed("import torch\ntorch.load(p, weights_only=True)", place)


def test_what_cannot_run_code_is_none() -> None:
    for source in ("engine.load(p)", "import yaml\nyaml.safe_dump(x)", "model.eval()", "open(p)"):
        assert not_allowed(source, "dataset/new.py") == set()


POSIX_ONLY = re.compile(
    r"\bos\.(fork|getuid|getpgid|killpg|setsid|sched_\w+|mkfifo|statvfs|O_NOFOLLOW|sysconf|uname)\b"
    r"|signal\.(SIGKILL|SIGUSR1|SIGHUP|SIGALRM|alarm|setitimer)\b"
    r"|^\s*(import|from) (fcntl|resource|pwd|grp|termios)\b",
    re.MULTILINE,
)


def test_what_windows_lacks_is_named_in_guarded_places_alone() -> None:
    guarded = {
        "util/checkpoint.py",  # import fcntl: else there is no lock
        "util/memory.py",  # import resource: else the memory is not known
        "util/experiments/sweep.py",  # SIGKILL, where an exit code is negative
    }
    assert {named(path) for path in IN_PACKAGE if POSIX_ONLY.search(path.read_text())} == guarded


def test_no_child_looks_for_modules_in_the_current_folder() -> None:
    """`python -m` and `python -c` do; a file does not."""
    for path in IN_PACKAGE:
        texts = {
            n.value
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        shell = {"-c"} if path == ROOT / "tool/main.py" else set()  # sh -c, of a text of our own
        assert not texts & {"-m", "-c"} - shell, named(path)


def test_files_say_what_they_are() -> None:
    sources = {named(path): path.read_text() for path in IN_PACKAGE}
    assert [
        f for f, text in sources.items() if text and not ast.get_docstring(ast.parse(text))
    ] == []


def test_folders_can_be_taken_in_at_a_glance() -> None:
    """No more than 16 files of code in any but the list of commands."""
    folders = (path.parent for path in IN_PACKAGE if path.name != "__init__.py")
    files = Counter(folder for folder in folders if folder != ROOT / "tool")
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
