"""Run the notebooks of this folder and store their outputs: `python docs/notebooks/execute.py`.

What goes to stderr, times, paths and progress bars are left out.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
KEPT = ("text/plain", "image/png")  # of what a cell displays
LARGEST = 800  # pixels of a picture's longer side
FOLDER = re.compile(re.escape(tempfile.gettempdir()) + r"(/tmp\w+)+")
TIMES = re.compile(r"^\d\d:\d\d:\d\d | [\d.]+ s/step .*", re.MULTILINE)
OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # progress: the terminal shows what follows


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; `stripseg` and `python` are those of the path.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        RuntimeError: a command failed, which raises nothing in a line that begins with "!".
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    with tempfile.TemporaryDirectory() as folder:  # the notebooks make their own folders below it
        client.execute(env={**os.environ, "TMPDIR": folder})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "error: " in output.get("text", ""):
                raise RuntimeError(f"{path.name}: {output.text}")
    tidy(notebook)
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave of the outputs what is the same on any machine."""
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.metadata.clear()
        cell.execution_count = number + 1
        streams = [output for output in cell.outputs if output.get("name") == "stdout"]
        others = [output for output in cell.outputs if output.output_type != "stream"]
        text = OVERWRITTEN.sub("", "".join(stream.text for stream in streams).replace("\r\n", "\n"))
        text = TIMES.sub("", FOLDER.sub("/path/to", text)).strip()
        said = [nbformat.v4.new_output("stream", text=f"{text}\n")] if text else []
        cell.outputs = [*said, *others]
        for output in others:
            if output.output_type == "execute_result":
                output.execution_count = number + 1
            output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}
            output.metadata = {}
            if "image/png" in output.data:
                output.data["image/png"] = smaller(output.data["image/png"])
                output.data["text/plain"] = "a picture"  # not the address of an object


def smaller(picture: str) -> str:
    """A PNG in base64 with 128 colours, at most LARGEST pixels long."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)), formats=["PNG"]).convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    packed = io.BytesIO()
    image.quantize(128).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        nbformat.write(execute(path), path)
        print(path)
