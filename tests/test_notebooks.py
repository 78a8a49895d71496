"""The notebooks of docs/ run from top to bottom and are stored with their outputs."""

import json
import os
from pathlib import Path

import pytest
from test_docs import write_programs

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_has_its_outputs(path: Path) -> None:
    """But no paths of the machine that made them, and nothing that went to stderr."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    text = json.dumps(outputs)
    assert "/tmp" not in text
    assert str(Path.home()) + "/" not in text
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(module)
    from docs.notebooks.execute import execute

    write_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert any(cell.outputs for cell in execute(path).cells if cell.cell_type == "code")
