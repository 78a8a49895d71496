"""The Python of README.md and docs/ runs as it stands, in order, on the built-in dataset."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stripseg.dataset.generated.shapes import write_shapes

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a small copy of the built-in dataset where the pages have it."""
    place = tmp_path_factory.mktemp("docs")
    write_shapes(place / "dataset/shapes/data", train=16, val=3, height=160, width=160)
    return place


def blocks(page: str) -> str:
    """All Python blocks of a page, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def run(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_python_of_a_page_runs(page: str, folder: Path) -> None:
    code = blocks(page)
    assert code.count("stripseg.") >= 3
    run(code, folder)
    assert (folder / "overlay.png").is_file()


@pytest.mark.slow
def test_the_python_of_the_explanations_runs(folder: Path) -> None:
    code = blocks("docs/curves_and_explain.md")
    assert "explain(segmenter" in code
    run(code, folder)


@pytest.mark.slow
def test_the_example_without_torch_runs(folder: Path, tmp_path: Path) -> None:
    """On an export of the network that the README trains."""
    run('import stripseg; stripseg.train("shapes", "spnet18", epochs=1, workers=0)', folder)
    best = folder / "exp/shapes/spnet18/model/best.pth"
    export = f'import stripseg; stripseg.load({str(best)!r}).export("spnet18.onnx")'
    run(export, tmp_path)
    shutil.copy(next((folder / "dataset").rglob("*.jpg")), tmp_path / "photo.jpg")
    code = blocks("docs/deploy.md")
    assert "import torch" not in code
    run(code + "\nimport sys\nassert 'torch' not in sys.modules", tmp_path)
    assert (tmp_path / "classes.png").is_file()


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
