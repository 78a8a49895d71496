"""One import name: the five code folders of the checkout install as `stripseg.<folder>`."""

from pathlib import Path

from setuptools import setup

FOLDERS = ["config", "model", "util", "dataset", "tool"]
# every room of these folders that holds code; users' own data below dataset/ has no __init__.py
PACKAGES = sorted(
    ".".join(path.parent.parts)
    for folder in FOLDERS
    for path in [*Path(folder).glob("__init__.py"), *Path(folder).glob("*/__init__.py")]
)
version = next(
    line.split('"')[1]
    for line in Path("stripseg/__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="stripseg",
    version=version,
    description="Train and test semantic segmentation networks (SPNet first) from one YAML file",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=["stripseg", *(f"stripseg.{package}" for package in PACKAGES)],
    package_dir={
        "stripseg": "stripseg",
        **{f"stripseg.{package}": package.replace(".", "/") for package in PACKAGES},
    },
    # narrow on purpose: users' own data lies below dataset/
    package_data={"stripseg.config": ["*/*.yaml"], "stripseg.dataset": ["catalog/*.yaml"]},
    install_requires=Path("requirements.txt").read_text(encoding="utf-8").split("\n"),
    extras_require={
        "digits": ["scikit-learn>=1.3"],
        "fast-png": ["isal>=1.6"],  # see util/png.py
        "matlab": ["scipy>=1.11"],
        "sweep": ["matplotlib>=3.7", "optuna>=4"],
        "timm": ["timm>=1.0.12"],
        "test": [
            "cityscapesscripts>=2.2",
            "hypothesis>=6",
            'isal>=1.6; platform_machine in "x86_64 AMD64 aarch64 arm64"',
            "matplotlib>=3.7",
            "optuna>=4",
            "pytest>=7",
            "pytest-xdist>=3",
            "ruff>=0.6",
            "scikit-learn>=1.3",
            "scipy>=1.11",
            "tensorboard>=2.10",
            "timm>=1.0.12",
        ],
    },
)
