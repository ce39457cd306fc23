"""The network on which workers on several machines find each other: the one by which Ray knows each machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"
"""What names the network interface to Gloo. By itself it takes the host name's address, which on many machines is
that of loopback: the workers of two of them would never meet. NCCL knows better."""


def torch_config(patience: float) -> TorchConfig:
    """Ray's way of opening torch's process group, after each worker has chosen its interface.

    patience: seconds until a collective gives up.
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

    return Config(timeout_s=int(patience) or 1)


def use_interface_of_node() -> None:
    """Name this machine's interface to Gloo, unless somebody has."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The name of the interface that has this IP address; None where none has (behind a translation of addresses)."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
