"""The one command: `stripseg COMMAND ...`, the same words after it as the scripts in tool/ take."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stripseg import __version__
from stripseg.config.types import nearest

USAGE = 2
# group -> {command: (module, what it does)}
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "train and test": {
        "demo": ("demo_run", "train, test and show a result on the built-in dataset"),
        "train": ("train", "train a network: stripseg train ade20k spnet50"),
        "test": ("test", "test it: stripseg test ade20k spnet50, or stripseg test best.pth"),
        "predict": ("predict", "segment images: stripseg predict best.pth photos/ --output out"),
        "serve": ("serve", "a local page to try a network on your images"),
        "compare": ("compare", "is B better than A? two tests or more of the same images"),
    },
    "data": {
        "prepare": ("prepare", "make lists and labels: stripseg prepare custom --images ..."),
        "check": ("check", "examine a dataset before training"),
        "browse": ("browse", "a sheet of training images with their labels"),
    },
    "networks": {
        "summary": ("summary", "parameters and cost of networks; the card of a checkpoint"),
        "convert": ("convert", "weights from one author's layout to another's"),
        "export": ("export", "a checkpoint as ONNX or torch.export file, verified"),
        "quantize": ("quantize", "an ONNX export in int8, measured"),
    },
    "reports": {
        "curves": ("curves", "learning curves of runs, as picture, table and in the terminal"),
        "explain": ("explain", "what strip pooling attends to in an image: pictures and a page"),
    },
    "experiments": {
        "sweep": ("sweep", "try many options"),
        "study": ("study", "a matrix of runs with several seeds"),
    },
}
MODULES = {name: entry[0] for group in COMMANDS.values() for name, entry in group.items()}


def main() -> None:
    """Run the command that the first word names; the entry point of the program `stripseg`."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0 if words else USAGE)
    if words[0] == "--commands":  # for shell completion: docs/commands.md
        print(*MODULES)
        return
    if words[0] in ("-V", "--version"):
        print(versions())
        return
    name = words[0]
    if name not in MODULES:
        likely = nearest(name, MODULES)
        cure = f"did you mean {likely}?" if likely else f"there are {', '.join(MODULES)}"
        print(f"error: stripseg {name}: there is no such command; {cure}", file=sys.stderr)
        sys.exit(USAGE)
    use_environment(sys.orig_argv)
    module = importlib.import_module(f"stripseg.tool.{MODULES[name]}")
    from stripseg import command_line

    sys.argv = [f"stripseg {name}", *words[1:]]
    command_line.run_command(module.main)


def overview() -> str:
    """Every command with what it does."""
    lines = [
        "usage: stripseg COMMAND ...",
        "",
        "stripseg COMMAND --help shows its arguments.",
        "",
    ]
    for group, commands in COMMANDS.items():
        lines.append(f"{group}:")
        lines += [f"  {name:10}{text}" for name, (_, text) in commands.items()]
    lines += ["", "  --version versions of everything that matters, for a bug report"]
    return "\n".join(lines)


def versions() -> str:
    """Version information for bug reports."""
    import platform

    import cv2
    import numpy
    import torch

    facts = {
        "stripseg": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "not in this build of torch",
        "cuDNN": torch.backends.cudnn.version() or "none",
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
    }
    for name in ("onnxruntime", "timm"):
        try:
            facts[name] = importlib.import_module(name).__version__
        except ImportError:
            facts[name] = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["devices"] = ", ".join(devices) or f"CPU, {os.cpu_count()} cores"
    return "\n".join(f"{name:12}{value}" for name, value in facts.items())


def use_environment(command: Sequence[str]) -> None:
    """Start this very command again with the settings of environment.sh, where there is a shell.

    The C library and OpenMP read them when a process starts.
    """
    settings = Path(__file__).with_name("environment.sh")
    if os.name != "posix" or "STRIPSEG_ENVIRONMENT" in os.environ or not settings.is_file():
        return
    os.environ["STRIPSEG_ENVIRONMENT"] = "read"
    script = '. "$0" && exec "$@"'
    os.execvp("sh", ["sh", "-c", script, str(settings), sys.executable, *command[1:]])


if __name__ == "__main__":
    main()
