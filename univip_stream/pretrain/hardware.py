"""What a process computes in, and how much memory it has taken."""

import resource
import sys

import torch


def memory(device: torch.device) -> dict[str, int]:
    """Most bytes that were in use so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return {"gpu_memory_bytes": torch.cuda.max_memory_allocated(device)}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_bytes": kilobytes * (1 if sys.platform == "darwin" else 1024)}


def pick_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """(type of the networks' arithmetic, why)."""
    if name == "fp32":
        return torch.float32, "as asked"
    if name == "bf16":
        return torch.bfloat16, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "this GPU multiplies bf16 in hardware"
        return torch.float32, "this GPU has no bf16"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU multiplies bf16 in hardware"
    return torch.float32, "this CPU has no bf16 instructions"
