"""The device that ``--device`` names, and the number format that is fastest on it."""

import time

import torch
from torch.nn import functional as F

from sqlenv.errors import UserError

PRODUCT = 4e9  # operations of the product that is measured, some 10 ms; a slow format takes seconds
GAIN = 1.2  # by which bfloat16 products must be faster: most else that a CPU does in it is slower


def resolve_device(name: str) -> str:
    """The device itself; ``auto`` is a GPU if there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Raises UserError unless torch can compute on this device here."""
    try:
        torch.ones(1, device=name).add(1).item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        # what torch raises for an unknown device, and for one that this machine or build lacks
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--device {name} cannot be used here: {reason:.200}; use cpu, cuda or auto"
        ) from error


def has_bfloat16(device: str) -> bool:
    """Whether the device has instructions for bfloat16 products; without, they are emulated and
    many times slower than those of float32.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities()
    return device == "cpu" and any(flags.get(name) for name in ("avx512_bf16", "amx_bf16"))


def product_seconds(dtype: torch.dtype, device: str, width: int, inner: int) -> float:
    """Seconds of a feed-forward product (rows, width) x (width, inner), the fastest of four."""
    rows = max(16, min(512, int(PRODUCT / (2 * width * inner))))
    tokens = torch.ones(rows, width, device=device, dtype=dtype)
    weight = torch.ones(inner, width, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        F.linear(tokens, weight)[0, 0].item()
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one warms up


def fastest_dtype(device: str, width: int, inner: int) -> str:
    """Which of "float32" and "bfloat16" a model computes in faster: on a CPU by a measurement, as
    one with AVX512-BF16 but no AMX has the instructions and is yet slower with them.

    Args:
        width, inner: of the model's feed-forward layers.
    """
    if not has_bfloat16(device):
        return "float32"
    if device.startswith("cuda"):
        return "bfloat16"
    seconds = [
        product_seconds(dtype, device, width, inner) for dtype in (torch.float32, torch.bfloat16)
    ]
    return "bfloat16" if seconds[0] > GAIN * seconds[1] else "float32"
