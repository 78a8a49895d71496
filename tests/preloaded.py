"""What the process that tests fork from has done: imports, and the ones that a first step makes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tensorboardX  # noqa: F401
import torch
from torch.nn.parallel import DistributedDataParallel  # noqa: F401

import stripseg.command_line
import stripseg.testing
import stripseg.training  # noqa: F401

torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).step()  # imports a thousand modules
