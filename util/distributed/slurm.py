"""What Slurm says of the job step this process is in (`srun`)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...config.errors import DeviceError


@dataclass(frozen=True)
class SlurmStep:
    """One task of a step over `nodes` machines and `tasks` tasks."""

    nodes: int
    node: int
    tasks: int
    task: int
    task_on_node: int
    tasks_on_node: int
    first_host: str
    port: int

    def environment(self) -> dict[str, str]:
        """What torchrun would set, for a step with a task for each GPU."""
        return {
            "RANK": str(self.task),
            "WORLD_SIZE": str(self.tasks),
            "LOCAL_RANK": str(self.task_on_node),
            "LOCAL_WORLD_SIZE": str(self.tasks_on_node),
            "MASTER_ADDR": self.first_host,
            "MASTER_PORT": str(self.port),
        }


SHELLS = ("bash", "sh", "zsh", "fish", "interactive")  # names that Slurm gives their jobs


def slurm_step(environment: Mapping[str, str]) -> SlurmStep | None:
    """The step that Slurm's variables describe, or None outside of srun and with a single task.

    In an interactive shell (`srun --pty bash`) the variables are the shell's, whose other tasks
    will never come: None, too.

    Raises:
        DeviceError: Slurm's variables do not fit together.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    shell = environment.get("SLURM_JOB_NAME") in SHELLS or "SLURM_PTY_PORT" in environment
    if tasks == 1 or shell:
        return None
    try:
        nodes = int(environment["SLURM_STEP_NUM_NODES"])
        per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks // nodes))
        node_list = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        return SlurmStep(
            nodes=nodes,
            node=int(environment["SLURM_NODEID"]),
            tasks=tasks,
            task=int(environment["SLURM_PROCID"]),
            task_on_node=int(environment["SLURM_LOCALID"]),
            tasks_on_node=tasks_on(int(environment["SLURM_NODEID"]), per_node),
            first_host=first_host(node_list),
            port=20000 + int(environment["SLURM_JOB_ID"]) % 20000,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise DeviceError(
            f"Slurm says that this is one of {tasks} tasks, and its other variables do not fit "
            f"({error!r}); start the command with srun, or name the machines in "
            "Distributed.world_size, rank and dist_url"
        ) from error


def first_host(node_list: str) -> str:
    """`gpu[03-05,9],login1` -> `gpu03`."""
    match = re.match(r"([^,\[\s]+)(?:\[(\w+))?", node_list)
    if match is None:
        raise ValueError(f"no host in {node_list!r}")
    return match[1] + (match[2] or "")


def tasks_on(node: int, per_node: str) -> int:
    """How many tasks the node has: `4(x2),3` is 4, 4, 3."""
    counts: list[int] = []
    for part in per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"cannot read {per_node!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node]
