"""The local page: what it shows of a prediction. The page itself needs gradio (extra `serve`)."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from stripseg.config.errors import ConfigError
from stripseg.report.serve import build_page, serve, shares, shown_classes

PREDICTION = SimpleNamespace(
    image=np.full((2, 3, 3), 100, np.uint8),
    mask=np.array([[0, 0, 0], [1, 1, 2]], np.uint8),
    names=["road", "sky", "pole"],
    colors=np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8),
    present=["road", "sky", "pole"],
)


def test_only_the_chosen_classes_are_coloured() -> None:
    shown = shown_classes(PREDICTION, ["sky"])
    assert (shown[0] == 100).all()
    assert (shown[1, 2] == 100).all()
    assert shown[1, 0].tolist() == [45, 155, 45]
    assert (shown_classes(PREDICTION, []) == 100).all()


def test_the_share_of_each_class_is_told() -> None:
    assert shares(PREDICTION) == [["road", "50.0 %"], ["sky", "33.3 %"], ["pole", "16.7 %"]]


def test_without_gradio_the_command_to_install_it_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'stripseg\[serve\]'"):
        serve(None)


def test_the_page_can_be_built() -> None:
    pytest.importorskip("gradio")
    card = SimpleNamespace(config={"TRAIN": {"arch": "spnet"}})
    network = SimpleNamespace(engine=lambda: None, card=card, names=["road"])
    page = build_page(network)
    (image,) = (block for block in page.blocks.values() if block.get_block_name() == "image")
    assert "share" not in image.buttons  # it would send the image to another host
