"""How the ranks of a machine reach each other, in words for people."""

from __future__ import annotations

import torch


def link(first: torch.device, ranks: int) -> str:
    """The link between the devices of a group whose rank 0 is on `first`."""
    if first.type == "cpu":
        return "gloo over loopback"
    start = first.index or 0
    return f"NCCL over {gpu_link(range(start, start + ranks))}"


def gpu_link(devices: range) -> str:
    """The weakest link between any two GPUs: NVLink, PCIe (peer to peer), or host memory. Asks the driver."""
    pairs = [(a, b) for a in devices for b in devices if a < b]
    if all(_nvlinks(a, b) for a, b in pairs):
        return "NVLink"
    if all(torch.cuda.can_device_access_peer(a, b) for a, b in pairs):
        return "PCIe"
    return "host memory"


def _nvlinks(one: int, other: int) -> int:
    """How many NVLinks lead from one GPU to another, or to a switch."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        ours, theirs = (pynvml.nvmlDeviceGetHandleByPciBusId(_bus(index)) for index in (one, other))
        status = pynvml.nvmlDeviceGetP2PStatus(ours, theirs, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        return int(status == pynvml.NVML_P2P_STATUS_OK)
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _bus(index: int) -> str:
    """A CUDA device's address on the bus: NVML counts devices in an order of its own."""
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
