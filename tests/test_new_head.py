"""docs/new_head.md as it stands: its file, line, YAML and test make a network that trains."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from stripseg.config.load import load_config
from stripseg.model import build
from stripseg.tool.train import build_trainer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "new_head.md"


def block(heading: str) -> str:
    """The code below the page's heading that begins so."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```\w+\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def head_module(tmp_path: Path, monkeypatch) -> ModuleType:
    """The page's file, imported as a module of stripseg.model."""
    path = tmp_path / "global_context.py"
    path.write_text(block("The file"), encoding="utf-8")
    spec = spec_from_file_location("stripseg.model.global_context", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_trains_its_network(head_module, small_config: Path, monkeypatch) -> None:
    line = eval("{" + block("The line") + "}", {**vars(build), **vars(head_module)})
    for arch, entry in line.items():
        monkeypatch.setitem(build.HEADS, arch, entry)
    content = yaml.safe_load(block("The YAML"))
    assert (PAGE.parent.parent / "config" / "shapes" / content["base"]).is_file()
    content["base"] = str(small_config)
    path = small_config.parent / "shapes_global_context18.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    trainer = build_trainer(load_config(path, ["TRAIN.evaluate", "False"]), torch.device("cpu"))
    assert isinstance(trainer.segmenter.head, head_module.GlobalContextHead)
    before = trainer.segmenter.head.classifier.weight.detach().clone()
    trainer.fit(until=2)
    assert trainer.step == 2
    assert not torch.equal(trainer.segmenter.head.classifier.weight, before)


def test_the_pages_test_passes(head_module) -> None:
    names: dict = {}
    exec(block("The test"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
