"""What the machine has: its memory in use, the arithmetic it could do."""

import resource
import sys
from typing import Any

import jax

_PEAK_FLOPS = {  # dense bfloat16, by jax's device_kind
    # NVIDIA's data sheets of A100, H100 and H200; those of the last two give twice, for sparsity
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    # Google Cloud's pages on TPU v4, v5e, v5p and v6e, a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: Any) -> float | None:
    """Dense bfloat16 operations a second of a jax ``device`` by its maker; None: not known."""
    return _PEAK_FLOPS.get(device.device_kind)


def peak_memory() -> dict[str, float]:
    """The most memory used so far: ``device_peak_mib`` of the fullest local device where devices
    tell, else ``host_peak_mib``, the resident set of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    used = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if used:
        return {"device_peak_mib": max(used) / 2**20}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_peak_mib": resident / (2**20 if sys.platform == "darwin" else 2**10)}
