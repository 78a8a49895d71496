"""One import name: the five code folders of the checkout install as `stripseg.<folder>`.

Everything else that is known of the package stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

FOLDERS = ["config", "model", "util", "dataset", "tool"]
# every room of these folders that holds code; users' own data below dataset/ has no __init__.py
PACKAGES = sorted(
    ".".join(path.parent.parts)
    for folder in FOLDERS
    for path in [*Path(folder).glob("__init__.py"), *Path(folder).glob("*/__init__.py")]
)

OWN = [path.parent.name for path in sorted(Path("stripseg").glob("*/__init__.py"))]


def description(readme: str, repository: str, revision: str) -> str:
    """README.md as a package index shows it, where links to files lead nowhere.

    Links and pictures become those of the repository at that revision; without a repository
    (pyproject.toml names none) links become their words, and pictures what they show.
    """

    def absolute(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if not repository:
            return f"*{words}*" if picture else words
        place = f"{repository}/{'raw' if picture else 'blob'}/{revision}"
        return f"{picture}[{words}]({place}/{target})"

    return re.sub(r"(!?)\[([^]\n]*)\]\((?!\w+:)([^)\s]+)\)", absolute, readme)


def named(pattern: str, file: str) -> str:
    """The group of a pattern in a file of this folder, empty without a match."""
    found = re.search(pattern, Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


setup(
    long_description=description(
        Path("README.md").read_text(encoding="utf-8"),
        named(r'^Repository = "(.+?)/?"$', "pyproject.toml"),
        "v" + named(r'^__version__ = "(.+)"$', "stripseg/__init__.py"),
    ),
    long_description_content_type="text/markdown",
    packages=["stripseg", *(f"stripseg.{package}" for package in [*OWN, *PACKAGES])],
    package_dir={
        "stripseg": "stripseg",
        **{f"stripseg.{room}": f"stripseg/{room}" for room in OWN},
        **{f"stripseg.{package}": package.replace(".", "/") for package in PACKAGES},
    },
    # narrow on purpose: users' own data lies below dataset/
    package_data={
        "stripseg": ["py.typed"],
        "stripseg.report": ["assets/*"],
        "stripseg.config": ["*/*.yaml"],
        "stripseg.dataset": ["catalog/*.yaml"],
        "stripseg.tool": ["environment.sh"],
    },
)
