"""Where the processes of one machine meet: a store that only this machine reaches.

torchrun's own (`--standalone`) listens on all interfaces, and the launcher unpickles what it finds
there, which anybody who reaches the port may have written. Here nothing is unpickled.
"""

import os
import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "stripseg-loopback"
HOST = "127.0.0.1"
TIMEOUT = timedelta(minutes=10)


def register() -> None:
    """Make `--rdzv-backend stripseg-loopback` known to torchrun, and keep the collectives of the
    processes it starts to the loopback interface too, unless the environment names another."""
    rendezvous_handler_registry.register(BACKEND, create_rendezvous)
    interface = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def create_rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    """What torchrun's registry calls; a function, because it compares what is registered twice."""
    return LoopbackRendezvous(parameters.run_id)


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of a single launcher: nobody to wait for, one store for all restarts."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.rounds = 0
        listener = socket.socket()
        listener.bind((HOST, 0))  # the system chooses the port, and nobody can take it in between
        self.port = listener.getsockname()[1]
        self.store = TCPStore(
            HOST,
            self.port,
            is_master=True,
            timeout=TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Whether the processes are clients of this store: it outlives them."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The store for the launcher's own messages, and its address for the processes."""
        self.rounds += 1
        own = PrefixStore(f"{self.run_id}/{self.rounds}", self.store)
        return RendezvousInfo(own, 0, 1, RendezvousStoreInfo(HOST, self.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to do: no other launcher listens."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        return True
