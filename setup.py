"""One import name: the five code folders of the checkout install as `stripseg.<folder>`.

Everything else that is known of the package stands in pyproject.toml.
"""

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

setup(
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
