"""Where the weights went, read from what llama.cpp logs."""

from __future__ import annotations

from pathlib import Path

from nrvna.llama import Model
from nrvna.llama.placement import Placement, read_placement

# As llama.cpp wrote them on a machine with two GPUs: the names and the form are its own, the figures made up.
TWO_GPUS = [
    "load_tensors: offloading output layer to GPU",
    "load_tensors: offloading 27 repeating layers to GPU",
    "load_tensors: offloaded 28/29 layers to GPU",
    "load_tensors:        CUDA0 model buffer size =  2100.50 MiB",
    "load_tensors:       CUDA10 model buffer size =   100.00 MiB",
    "load_tensors:   CPU_Mapped model buffer size =   125.25 MiB",
    "load_tensors:    CUDA_Host model buffer size =     4.00 MiB",
]


def test_the_real_models_weights_are_all_found(model: Model) -> None:
    found = sum(size for _, size in model.placement.buffers)
    assert abs(found - model.size_bytes) < 0.02 * model.size_bytes


def test_a_model_of_which_the_vocabulary_alone_is_loaded_lies_nowhere(model_file: Path) -> None:
    with Model(model_file, vocab_only=True) as model:
        assert model.placement == Placement()


def test_layers_and_buffers_are_read() -> None:
    placement = read_placement(TWO_GPUS)
    assert (placement.offloaded, placement.layers) == (28, 29)
    assert placement.buffers[0] == ("CUDA0", 2100 * 2**20 + 2**19)
    assert [name for name, _ in placement.buffers] == ["CUDA0", "CUDA10", "CPU_Mapped", "CUDA_Host"]


def test_buffers_belong_to_their_devices_and_the_rest_to_the_host() -> None:
    weights = read_placement(TWO_GPUS).weights(["CUDA0", "CUDA1", "CUDA10"])
    assert {name: size / 2**20 for name, size in weights.items()} == {
        "CUDA0": 2100.5,
        "CUDA1": 0,
        "CUDA10": 100,
        "CPU": 129.25,
    }


def test_metals_mapped_buffers_are_the_devices() -> None:
    weights = Placement(2, 2, (("MTL0_Mapped", 10), ("MTL0_Private", 5), ("CPU_Mapped", 1))).weights(["MTL0"])
    assert weights == {"MTL0": 15, "CPU": 1}
