"""A page to try a network: `stripseg serve best.pth`, then open the address it prints.

Drop an image, see its classes, switch them on and off. It listens on this machine alone; with
--host 0.0.0.0 on every address, without any password. Needs the extra `serve` (gradio).
"""

import os
from collections.abc import Sequence

from stripseg import command_line
from stripseg.report.serve import gradio, serve
from stripseg.trained_network import load


def main(argv: Sequence[str]) -> None:
    """Load the network, show the page."""
    parser = command_line.command_parser("stripseg serve", __doc__, figures=False)
    parser.add_argument("network", help="checkpoint, export, folder, or hf://OWNER/NAME")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    options = parser.parse_args(list(argv))
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # asks no other host for anything
    gradio()  # before the network is read
    serve(load(options.network, device=options.device), host=options.host, port=options.port)


if __name__ == "__main__":
    command_line.run_command(main)
