"""A model that only makes vectors, such as BERT: loaded without the context that answers need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.devices import device_of, open_library, shares, uses_gpu
from nrvna.engine.embedder import Embedder
from nrvna.engine.machine import physical_cores
from nrvna.engine.protocol import Ready
from nrvna.engine.vectors import AT_ONCE
from nrvna.llama import Model


class Encoder:
    """Raises what Model raises. ``progress`` is called with 0.0 to 1.0 while the weights are read."""

    def __init__(self, path: Path, config: Config, progress: Callable[[float], None] | None = None) -> None:
        library = open_library(config)
        self._library = library
        self.build = library.build
        self.model = Model(path, gpu_layers=config.gpu_layers, progress=progress)
        self._config = config
        self._threads = config.threads or physical_cores()

    def embedder(self) -> Embedder:
        config = self._config
        return Embedder(self.model, threads=self._threads, context=config.ctx, reproducible=bool(config.reproducible))

    def ready(self) -> Ready:
        model, on_gpu = self.model, uses_gpu(self._library, self._config)
        return Ready(
            description=f"{model.metadata.get('general.name', model.path.stem)}, {model.quantization}, for vectors",
            backend=self.build.backend if on_gpu else "cpu",
            parallel=self._config.parallel or AT_ONCE,
            context=self._config.ctx or model.n_ctx_train,
            threads=self._threads,
            device=device_of(self._library, on_gpu=on_gpu),
            writes=False,
            layers=model.placement.layers,
            offloaded=model.placement.offloaded,
            shares=shares(self._library, model),
        )
