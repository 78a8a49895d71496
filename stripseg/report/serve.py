"""A local page: drop an image, see its classes, switch them on and off (extra `serve`: gradio)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.errors import ConfigError, DataError
from ..trained_network import Prediction, TrainedNetwork
from .legend import OverlayStyle

LARGEST = 32 * 2**20  # bytes of a file
OPACITY = 0.55


def gradio() -> Any:
    """The library that makes the page.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gradio
    except ImportError:
        raise ConfigError(
            "stripseg serve: needs gradio; install it with: pip install 'stripseg[serve]'"
        ) from None
    return gradio


def shown_classes(prediction: Prediction, chosen: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8: the image with the colours of the chosen classes over it."""
    indices = tuple(i for i, name in enumerate(prediction.names) if name in chosen)
    style = OverlayStyle(opacity=OPACITY, classes=indices)
    return style.draw(prediction.image, prediction.mask, prediction.names, prediction.colors)


def shares(prediction: Prediction) -> list[list[str]]:
    """A row (class, share of the image) for each class that is present, the largest first."""
    counts = np.bincount(prediction.mask.ravel(), minlength=len(prediction.names))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [
        [prediction.names[index], f"{100 * counts[index] / counts.sum():.1f} %"] for index in order
    ]


def build_page(network: TrainedNetwork) -> Any:
    """The page as a gradio.Blocks, not started yet."""
    gr = gradio()
    engine = network.engine()

    def segment(path: str | None) -> tuple:
        """Predict the file that was dropped; a bad one is told, and nothing else changes."""
        if path is None:
            return None, None, gr.update(choices=[], value=[]), []
        try:
            prediction = network.predict_with(engine, Path(path))
        except DataError as error:
            reason = str(error).replace(path, Path(path).name)
            raise gr.Error(reason, print_exception=False) from None
        present = prediction.present
        return (
            prediction,
            shown_classes(prediction, present),
            gr.update(choices=present, value=present),
            shares(prediction),
        )

    def switch(prediction: Prediction | None, chosen: list[str]) -> np.ndarray | None:
        return None if prediction is None else shown_classes(prediction, chosen)

    title = f"{network.card.config['TRAIN']['arch']}: {len(network.names)} classes"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"## {title}")
        state = gr.State(None)
        with gr.Row():
            source = gr.File(label="image", file_types=["image"], type="filepath")
            result = gr.Image(
                label="classes",
                type="numpy",
                interactive=False,
                buttons=["download", "fullscreen"],  # "share" would send the image to another host
            )
        chosen = gr.CheckboxGroup(label="classes in the image", choices=[])
        table = gr.Dataframe(headers=["class", "share"], label="shares", interactive=False)
        source.change(segment, source, [state, result, chosen, table])
        chosen.input(switch, [state, chosen], result)
    return page


def serve(network: TrainedNetwork, *, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Show the page until the process is stopped.

    Args:
        host: address to listen on; the default can be reached from this machine alone.
        port: the first free one from 7860 on if None.
    Raises:
        ConfigError: gradio is missing, or the port cannot be used.
    """
    page = build_page(network)
    try:
        page.queue(default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            max_file_size=LARGEST,
            share=False,
            show_error=True,
            quiet=False,
        )
    except OSError as error:
        raise ConfigError(
            f"stripseg serve: {host}, port {port or 'from 7860 on'}: cannot listen there "
            f"({error}); choose another with --port"
        ) from error
