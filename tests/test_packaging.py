"""One version, a changelog with sections, a citation: what a release is made of."""

import re
from pathlib import Path

import pytest
import yaml

from stripseg import __version__

ROOT = Path(__file__).resolve().parent.parent
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_version_stands_in_one_place() -> None:
    """CITATION.cff has to repeat it."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "stripseg.__version__" }' in project
    assert __version__ not in project + (ROOT / "setup.py").read_text()


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    for heading in others:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|not published)", heading)
    for section in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]


def test_an_image_is_built_from_all_of_the_code() -> None:
    """.dockerignore names the folders that the wheel in an image is built from."""
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    rooms = [path.parent.relative_to(ROOT) for path in (ROOT / "dataset").glob("*/__init__.py")]
    folders = ("config", "model", "util", "stripseg", "tool", "dataset/catalog")
    assert {*map(str, rooms), *folders} <= {*kept}


def test_extras_of_the_docs_and_messages_exist() -> None:
    extras = set(
        re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for named in re.findall(
            r"pip install[^`\n]*(?:stripseg|\.)\[([\w,-]+)\]", page.read_text()
        ):
            assert set(named.split(",")) <= extras, page


@pytest.mark.parametrize("repository", ["", "https://example.org/us/stripseg"])
def test_the_description_of_a_package_has_no_relative_link(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package index shows it, without our files beside it."""
    pytest.importorskip("setuptools")  # its own distutils
    from distutils.core import run_setup

    for name in ("setup.py", "README.md", "stripseg/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        f'[project.urls]\nRepository = "{repository}"\n' if repository else ""
    )
    monkeypatch.chdir(tmp_path)
    text = run_setup("setup.py", stop_after="init").metadata.long_description
    links = re.findall(r"\]\((.*?)\)", text)
    places = (f"{repository}/blob/v{__version__}/", f"{repository}/raw/v{__version__}/docs/images/")
    assert all(link.startswith(places) for link in links), links
    assert bool(links) == bool(repository)
    assert "](docs/" not in text
    assert "own data" in text
