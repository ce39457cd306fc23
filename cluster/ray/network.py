"""The network interface by which workers on several machines connect: the one by which Ray knows each machine.

By itself, Gloo takes the address of the host name. On many machines that is loopback, and workers on two of them would
never connect. NCCL does not have this problem.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig


def torch_config(timeout: float) -> TorchConfig:
    """Ray's setup of torch's process group, after each worker has chosen its interface.

    timeout: seconds until a collective fails.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            worker_group.execute(use_interface_of_node)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return Config(timeout_s=int(timeout) or 1)


def use_interface_of_node() -> None:
    """Tell Gloo this machine's interface, unless the environment already does."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of the interface with this IP address; None if there is none (behind network address translation)."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
