"""Run the notebooks of this folder and store their outputs: `python docs/notebooks/execute.py`.

What goes to stderr (progress, times) is left out, and so is what differs from run to run.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
KEPT = ("text/plain", "image/png")  # of what a cell displays


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; `stripseg` and `python` are those of the path.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        RuntimeError: a command failed, which raises nothing in a line that begins with "!".
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # the notebooks make their own folders below it
        os.environ["TMPDIR"] = folder
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.metadata.clear()
        cell.execution_count = number + 1
        for output in cell.outputs:
            if "error: " in output.get("text", ""):
                raise RuntimeError(f"{path.name}: {output.text}")
        cell.outputs = [kept(o, number + 1) for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def kept(output: nbformat.NotebookNode, number: int) -> nbformat.NotebookNode:
    if output.output_type == "execute_result":
        output.execution_count = number
    if "data" in output:
        output.data = {kind: output.data[kind] for kind in KEPT if kind in output.data}
        if "image/png" in output.data:
            output.data["text/plain"] = "a picture"  # not the address of an object
        output.metadata = {}
    return output


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        nbformat.write(execute(path), path)
        print(path)
