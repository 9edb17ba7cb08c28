"""A model that only makes vectors, such as BERT: loaded without the context that answers need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.embedder import Embedder
from nrvna.engine.machine import physical_cores
from nrvna.engine.protocol import Ready
from nrvna.engine.runner import device_of, has_gpu
from nrvna.engine.vectors import AT_ONCE
from nrvna.errors import ModelMemoryError
from nrvna.llama import Model, load_library

log = logging.getLogger("nrvna.engine")


class Encoder:
    """Raises what Model raises. ``progress`` is called with 0.0 to 1.0 while the weights are read."""

    def __init__(self, path: Path, config: Config, progress: Callable[[float], None] | None = None) -> None:
        library = load_library(Path(config.llama_dir) if config.llama_dir else None)
        self._library = library
        self.build = library.build
        wish = config.gpu_layers if has_gpu(library) else 0
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
        model = self.model
        return Ready(
            description=f"{model.metadata.get('general.name', model.path.stem)}, {model.quantization}, for vectors",
            backend=self.build.backend,
            parallel=self._config.parallel or AT_ONCE,
            context=self._config.ctx or model.n_ctx_train,
            threads=self._threads,
            device=device_of(self._library, on_gpu=self._on_gpu),
            writes=False,
        )
