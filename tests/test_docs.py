"""The code of README.md and docs/ runs as it stands, in order, on small copies of the data.

Blocks of Python run unless a marker, a comment above the block, says otherwise. Blocks of sh need
one:

    <!-- run: quick -->                        as it stands
    <!-- run: slow; 40 -> 1; /data -> data -->   with words replaced; the test is marked slow
    <!-- run by: tests/test_new_head.py -->    another test reads the page
    <!-- not run: needs the ADE20K download -->
    <!-- file: study.yaml; 3 -> 1 -->          written to the folder before the commands run

Commands run in a folder like a checkout (`tool/`, `.venv/`, `dataset/`), whose configs are small
networks on small pictures under the names of the real ones. `pip` does nothing there, and commands
are forked from a process that has imported PyTorch: tests/test_commands.py starts real ones.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from processes import PYTHON, serve_commands, write_python

from stripseg.dataset.generated.shapes import write_shapes

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "docs").rglob("*.md"),
    )
)
BLOCK = re.compile(
    r"(?:^<!-- ((?:not run|run by|run|file): [^\n]*?) -->\n\n?)?^```(\w*)[^\n]*\n(.*?)^```",
    re.DOTALL | re.MULTILINE,
)
QUICK = "quick"
SPEEDS = (QUICK, "slow")
ALWAYS = ("README.md", "docs/api.md")  # they train what they use
FROM_SCRATCH = ("docs/first_network.md",)  # draw all the data, and use the first few pictures
WITHOUT_TORCH = ("docs/deploy.md",)
SHOWN = ("text", "cpp", "diff", "toml")  # languages that nothing here runs


@dataclass(frozen=True)
class Block:
    """A block of code: where it is, its marker ("run", "quick"), and what to replace in it."""

    place: str
    language: str
    source: str
    verb: str
    value: str
    replaced: tuple[tuple[str, str], ...]

    @property
    def runs(self) -> bool:
        return self.verb == "run" or (self.language == "python" and not self.verb)

    @property
    def code(self) -> str:
        code = self.source
        for before, after in self.replaced:
            assert before in code, f"{self.place}: the block has no {before!r} to replace"
            code = code.replace(before, after)
        return code


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        marker, language, source = match.groups()
        verb, _, rest = (marker or "").partition(": ")
        value, *pairs = rest.split("; ") if verb != "not run" else [rest]
        replaced = tuple(tuple(pair.split(" -> ", 1)) for pair in pairs)
        place = f"{page}, line {text[: match.start(2)].count(chr(10)) + 1}"
        found.append(Block(place, language, source, verb, value, replaced))
    return found


def runs_quickly(page: str) -> bool:
    """Whether the page says of all that runs that it is quick."""
    return all(block.value == QUICK for block in blocks(page) if block.runs)


def write_config(folder: Path, name: str, **changes: dict) -> None:
    """`config/NAME` of the checkout in small: the same options but for size and time."""
    small = {
        "base": str(ROOT / "config" / name),
        "experiment": Path(name).stem.partition("_")[2],
        "DATA": {},
        "TRAIN": {
            "epochs": 1,
            "width": 0.125,
            "train_h": 48,
            "train_w": 48,
            "batch_size": 8,
            "workers": 0,
            "evaluate_freq": 1,
            "precision": "fp32",
        },
        "TEST": {"base_size": 0, "test_h": 64, "test_w": 64, "workers": 0},
    }
    for section, options in changes.items():
        small[section] |= options
    path = folder / "config" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(small), encoding="utf-8")


def write_programs(folder: Path) -> None:
    """`forked`, a Python that has imported PyTorch; `stripseg`, `python` and `pip` of sh."""
    forked = shlex.join([sys.executable, "-S", f"{ROOT}/tests/forked.py", serve_commands()])
    write_python(folder / "python")  # `sh tool/train.sh` ends with `python -u tool/train.py`
    for name, line in {
        "forked": f'{PYTHON}="${{0%/*}}/python" STRIPSEG_ENVIRONMENT=read exec {forked} "$@"',
        "stripseg": 'exec forked stripseg.tool.main "$@"',
        "pip": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


def write_shapes_config(folder: Path, lists: Path | None = None) -> None:
    """The config of the built-in pictures; `lists` holds other lists than theirs."""
    data = {}
    if lists is not None:
        data = {f"{name}_list": str(lists / f"{name}.txt") for name in ("train", "val")}
    test = {"TEST": {"test_list": data["val_list"]}} if data else {}
    write_config(folder, "shapes/shapes_spnet18.yaml", DATA=data, **test)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, with a small built-in dataset."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("tool", "setup.py"):
        (place / name).symlink_to(ROOT / name)
    write_programs(place / ".venv/bin")
    write_shapes(place / "dataset/shapes/data", train=16, val=4, height=72, width=88)
    write_shapes(place / "camvid", train=8, val=2, height=72, width=88)
    for name in ("names.txt", "colors.txt"):  # of the shapes: CamVid has other classes
        (place / "camvid" / name).unlink()
    shutil.copy(next((place / "camvid").rglob("*.jpg")), place / "photo.jpg")
    write_shapes_config(place)
    write_config(place, "camvid/camvid_spnet18.yaml", DATA={"labels": "train_id"})
    write_config(
        place,
        "shapes10/shapes10_resnet18.yaml",
        TRAIN={"train_h": 32, "train_w": 32},
        TEST={"test_h": 32, "test_w": 32},
    )
    return place


@pytest.fixture(scope="session")
def trained(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder in which its network was trained and tested."""
    place = tmp_path_factory.mktemp("trained") / "checkout"
    shutil.copytree(checkout, place, symlinks=True)
    shell("sh tool/train.sh shapes spnet18 && sh tool/test.sh shapes spnet18", place)
    return place


def shell(code: str, folder: Path, place: str = "") -> None:
    """Run commands as a script, which ends where one fails."""
    done = subprocess.run(
        ["sh", "-e", "-c", code],
        cwd=folder,
        env=dict(os.environ, PATH=f"{folder / '.venv/bin'}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{place}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def python_of(page: str) -> str:
    """The Python of a page as one program."""
    return "\n".join(
        block.code for block in blocks(page) if block.language == "python" and block.runs
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if runs_quickly(page) else pytest.mark.slow)
        for page in PAGES
        if any(block.runs for block in blocks(page))
    ],
)
def test_a_page_runs(page: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    untrained = runs_quickly(page) or page in (*ALWAYS, *FROM_SCRATCH)
    world = request.getfixturevalue("checkout" if untrained else "trained")
    folder = tmp_path / "checkout"
    shutil.copytree(world, folder, symlinks=True)
    if page in FROM_SCRATCH:
        shutil.move(folder / "dataset/shapes/data", tmp_path / "few")
        write_shapes_config(folder, lists=tmp_path / "few")
    for block in blocks(page):
        if block.verb == "file":
            (folder / block.value).write_text(block.code, encoding="utf-8")
        elif block.language == "sh" and block.runs:
            shell(block.code, folder, block.place)
    code = python_of(page)
    if page in WITHOUT_TORCH:
        code += "\nimport sys\nassert 'torch' not in sys.modules"
    if code:
        program = tmp_path / "page.py"
        program.write_text(code, encoding="utf-8")
        shell(f"{'python' if page in WITHOUT_TORCH else 'forked'} {program}", folder, page)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_becomes_of_it(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = blocks(page)
    assert len(found) == len(re.findall(r"^```\w*[^\n]*\n.*?^```", text, re.DOTALL | re.MULTILINE))
    for block in found:
        assert block.language, f"{block.place}: name the block's language; `text` for output"
        if block.language in ("sh", "bash"):
            assert block.verb in ("run", "run by", "not run"), f"{block.place}: no marker above it"
        if block.verb == "run":
            assert block.value in SPEEDS, f"{block.place}: run: quick or run: slow"
            assert block.language in ("sh", "python"), block.place
            assert block.code
        if block.verb == "run by":
            test = (ROOT / block.value).read_text(encoding="utf-8")
            assert Path(page).name in test, f"{block.value} does not read {page}"
        if block.verb == "not run":
            assert len(block.value) > 10, f"{block.place}: say why"
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.source), dict), block.place
        elif block.language == "json":
            json.loads(block.source)
        else:
            assert block.language in ("sh", "python", *SHOWN), block.place


def test_the_marker_is_read() -> None:
    text = (
        "<!-- run: slow; a b -> c -->\n```sh\na b d\n```\n\n<!-- not run: x; y -->\n```sh\nz\n```\n"
    )
    first, second = BLOCK.findall(text)
    assert first == ("run: slow; a b -> c", "sh", "a b d\n")
    assert second == ("not run: x; y", "sh", "z\n")
    assert Block("", "sh", "a b d\n", "run", "slow", (("a b", "c"),)).code == "c d\n"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"<!-- .*? -->", "", (ROOT / page).read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_name_of_the_package_is_documented() -> None:
    import stripseg

    page = (ROOT / "docs/api_reference.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: stripseg\.\S*?(\w+)$", page, re.MULTILINE))
    assert documented == set(stripseg.__all__) - {"__version__"}


def test_every_page_is_in_the_navigation() -> None:
    entries = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    assert sorted(entries) == pages
