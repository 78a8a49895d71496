"""Compare with the numbers of the reference implementations: python -m tests.compat FOLDER

Checks every fixture of a folder from its JSON alone: builds what it names, fills it with the
authors' weights through the ordinary loading path, compares. Prints the name, the largest error in
units of its tolerance and the verdict; exits with 1 if a fixture fails or is of an unknown kind.
"""

import argparse
import sys
from pathlib import Path

from .check import check
from .fixture import UnknownFixtureError, read_fixture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("folder", type=Path, help="with NAME.json, NAME.npz and recipe.py")
    paths = sorted(parser.parse_args().folder.glob("*.json"))
    if not paths:
        print("no fixtures (NAME.json) there", file=sys.stderr)
        return 1
    failures = 0
    for path in paths:
        try:
            what, error = max(check(read_fixture(path)), key=lambda item: item[1])
            passed = error <= 1
            text = f"{error:9.3g} x tolerance ({what})"
        except UnknownFixtureError as unknown:
            passed, text = False, f"unknown: {unknown}"
        except Exception as error:  # a broken fixture must not hide the others
            passed, text = False, f"{type(error).__name__}: {error}"
        failures += not passed
        print(f"{path.stem:45} {'passed' if passed else 'FAILED'} {text}", flush=True)
    print(f"{len(paths) - failures} of {len(paths)} fixtures pass")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
