"""What the tests of configs share: YAML files of older repositories, and a bad one's complaint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent
# of networks; sweeps and studies have files of their own kind
SHIPPED = [
    path
    for path in sorted(ROOT.glob("config/*/*.yaml"))
    if path.parent.name not in ("studies", "sweeps")
]
LEAST = "DATA:\n  data_root: data\n  classes: 3\n"
Write = Callable[..., Path]

# The keys of the older repositories' YAML files, with typical values; the mixture of True, 1 and
# empty values is theirs.
SEMSEG = """
DATA:
  data_root: /data/ade20k
  train_list: /data/ade20k/list/training.txt
  val_list: /data/ade20k/list/validation.txt
  classes: 150
TRAIN:
  arch: psa
  layers: 50
  sync_bn: True
  train_h: 465
  train_w: 465
  scale_min: 0.5
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
  psa_type: 2
  compact: 0
  shrink_factor: 2
  mask_h:
  mask_w:
  normalization_factor: 1.0
  psa_softmax: 1
  train_gpu: [0, 1, 2, 3, 4, 5, 6, 7]
  workers: 16
  batch_size: 16
  batch_size_val: 1
  base_lr: 0.01
  epochs: 100
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed:
  print_freq: 10
  save_freq: 1
  save_path: exp/ade20k/psanet50/model
  weight:
  resume:
  evaluate: False
Distributed:
  dist_url: tcp://127.0.0.1:6789
  dist_backend: 'nccl'
  multiprocessing_distributed: True
  world_size: 1
  rank: 0
  use_apex: True
  opt_level: 'O0'
  keep_batchnorm_fp32:
  loss_scale:
TEST:
  test_list: /data/ade20k/list/validation.txt
  split: val
  base_size: 512
  test_h: 465
  test_w: 465
  scales: [1.0]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: exp/ade20k/psanet50/model/train_epoch_100.pth
  save_folder: exp/ade20k/psanet50/result/epoch_100/val/ss
  colors_path: dataset/nowhere/ade20k_colors.txt
  names_path: dataset/nowhere/ade20k_names.txt
"""
PSA_LINES = ("psa_type", "compact", "shrink_factor", "mask_", "normalization", "psa_softmax")
APEX_LINES = ("use_apex", "opt_level", "keep_batchnorm", "loss_scale")


def without(text: str, starts: tuple[str, ...]) -> str:
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(starts))


SPNET = without(SEMSEG, PSA_LINES).replace(
    "  arch: psa\n", "  arch: spnet\n  spm_on: True\n  backbone: resnet50\n  dataset: cityscapes\n"
)
SPNET = SPNET.replace("weight:\n", "weight: ./pretrained/resnet50-25c4b509.pth\n", 1)
PYCONV = without(SEMSEG, PSA_LINES).replace(
    "  arch: psa\n",
    "  arch: pyconvsegnet\n  backbone_net: pyconvresnet\n  pretrained: /w/pyconvresnet50.pth\n"
    "  use_ppm: False\n  backbone_output_stride: 8\n",
)
PYCONV += (
    "\n  best_mIoU_model_path: exp/model/best_mIoU.pth\n  best_mIoU_save_folder: exp/result/best\n"
)


def complaint(path: Path | str, *overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# every option of docs/recipes.md at once
LOSSES = "{cross_entropy: 1, dice: 0.5, lovasz: 0.5, focal: 1, boundary: 1, ohem: 1}"
RECIPE = [
    *("TRAIN.loss", LOSSES, "TRAIN.clip_grad_norm", "1", "TRAIN.decay_norms_and_biases", "False"),
    *("TRAIN.layer_lr_decay", "0.8", "TRAIN.average_decay", "0.9", "TRAIN.warmup_epochs", "1"),
    *("TRAIN.rare_class_crop", "0.5", "TRAIN.copy_paste", "0.5"),
    *("TRAIN.color_jitter", "[0.4, 0.4, 0.4]"),
]
