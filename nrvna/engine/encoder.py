"""A model that only makes vectors, such as BERT: loaded without the context that answers need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.devices import device_of, open_library, shares, uses_gpu
from nrvna.engine.embedder import Embedder
from nrvna.engine.machine import physical_cores
from nrvna.engine.protocol import Ready
from nrvna.engine.vectors import AT_ONCE
from nrvna.errors import ModelMemoryError
from nrvna.llama import Model

log = logging.getLogger("nrvna.engine")


class Encoder:
    """Raises what Model raises. ``progress`` is called with 0.0 to 1.0 while the weights are read."""

    def __init__(self, path: Path, config: Config, progress: Callable[[float], None] | None = None) -> None:
        library = open_library(config)
        self._library = library
        self.build = library.build
        wish = config.gpu_layers if uses_gpu(library, config) else 0
        try:
            self.model = Model(path, gpu_layers=wish, progress=progress)
        except ModelMemoryError as error:
            if not wish:
                raise
            log.warning("not enough memory on the GPU: the CPU computes (%s)", error)
            wish = 0
            self.model = Model(path, gpu_layers=0, progress=progress)
        self._on_gpu = wish > 0
        self._config = config
        self._threads = config.threads or physical_cores()

    def embedder(self) -> Embedder:
        config = self._config
        return Embedder(self.model, threads=self._threads, context=config.ctx, reproducible=bool(config.reproducible))

    def ready(self) -> Ready:
        model, on_gpu = self.model, self._on_gpu
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
