"""Where a model's weights went: how many layers are on a GPU, and how much lies on which device.

llama.cpp's C API does not say; its log does, in lines that have stayed the same for years and that the tests read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOST = "CPU"
_LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Placement:
    """``offloaded`` of ``layers`` are on a GPU, the output layer counted; both are 0 in a build that knows none.

    ``buffers`` are the names of llama.cpp's buffers, such as CUDA0 or CPU_Mapped, with their bytes.
    """

    layers: int = 0
    offloaded: int = 0
    buffers: tuple[tuple[str, int], ...] = ()

    def weights(self, devices: Sequence[str]) -> dict[str, int]:
        """Bytes of weights on each of these devices, by name; what is on none of them is the host's."""
        found = dict.fromkeys((*devices, HOST), 0)
        for name, size in self.buffers:
            found[next((device for device in devices if _is_of(name, device)), HOST)] += size
        return found


def read_placement(lines: Iterable[str]) -> Placement:
    """What llama.cpp logged while it loaded a model."""
    layers = offloaded = 0
    buffers = []
    for line in lines:
        if match := _LAYERS.search(line):
            offloaded, layers = int(match[1]), int(match[2])
        elif match := _BUFFER.search(line):
            buffers.append((match[1], round(float(match[2]) * 2**20)))
    return Placement(layers, offloaded, tuple(buffers))


def _is_of(buffer: str, device: str) -> bool:
    """CUDA1 and MTL0_Mapped are CUDA1's and MTL0's; CUDA10 is not CUDA1's, and CUDA_Host is memory of the host."""
    return re.match(rf"{re.escape(device)}(?!\d)", buffer) is not None
