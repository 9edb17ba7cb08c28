"""Will this model work here? What ``nrvnad --check`` prints."""

from __future__ import annotations

from pathlib import Path

from nrvna.config import Config
from nrvna.engine.chain import recommendation
from nrvna.engine.devices import open_library, require_gpus
from nrvna.engine.fitting import Fit
from nrvna.engine.layout import GPU_MICRO_BATCH
from nrvna.engine.machine import available_memory
from nrvna.engine.prompt import PromptEncoder
from nrvna.engine.shape import choose_shape
from nrvna.errors import NrvnaError
from nrvna.llama import Library, Model
from nrvna.llama.gguf import parts_of
from nrvna.llama.library import Device

_TEMPLATES = {
    "model": "yes, the model's own",
    "override": "yes, the one asked for",
    "llama.cpp": "yes, of a family that llama.cpp knows",
    "none": "no: prompts go to it as plain text, as suits a base model",
}
# Beside weights and KV cache: compute buffers, measured at 30 to 300 MB for models up to 7B at 512 tokens a batch.
_OVERHEAD_BYTES = 300_000_000


def check_model(path: Path, config: Config) -> int:
    """Print what there is to know and a verdict. Returns 0 if the model will work, 1 if not."""
    try:
        library = open_library(config)
        require_gpus(config)
        rows, problem = _judge(library, Model(path, vocab_only=True), path, config)
    except (NrvnaError, OSError) as error:
        print(f"verdict       will not work: {error}")
        return 1
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    return 1 if problem else 0


def _judge(library: Library, model: Model, path: Path, config: Config) -> tuple[dict[str, str], str | None]:
    """What there is to say, by name, and why it will not work, if so."""
    with model:
        weights = sum(part.stat().st_size for part in parts_of(path))
        gpus = [device for device in library.devices() if device.is_gpu] if config.gpu_layers else []
        fit = Fit(path, config, library, most=config.gpu_layers if gpus else 0, micro_batch=GPU_MICRO_BATCH)
        shape = choose_shape(model, fit.room(model, unloaded=weights), config)
        needed = weights + shape.kv_bytes + _OVERHEAD_BYTES
        on_gpus = sum(gpu.memory_free or available_memory() for gpu in gpus) if fit.layers else 0
        beside = 0 if fit.is_whole else available_memory()
        rows = {
            "file": f"{path} ({_size(weights)})",
            "format": "GGUF",
            "model": model.metadata.get("general.name", "unnamed"),
            "architecture": model.architecture,
            "quantization": model.quantization,
            "context": f"{model.n_ctx_train} tokens trained, {shape.context} for each job here",
            **(_prompts(model, config) if model.is_generative else _vectors(model)),
            "runs on": _place(library, fit, gpus, shape.threads),
            "memory": f"about {_size(needed)} needed for {_jobs(shape.parallel)} at a time, {_free(on_gpus, beside)}",
        }
        problem = None
        if needed > on_gpus + beside:
            problem = "it does not fit: take a smaller one or a lower NRVNA_CTX or NRVNA_PARALLEL"
        works = "will work" if model.is_generative else "will work for vectors alone: queue with `wrk --embed`"
        if model.pooling == "rank":
            works = "will work for ranking alone: queue with `wrk --rerank FILE`"
        rows["verdict"] = f"will not work: {problem}" if problem else works
    return rows, problem


def _place(library: Library, fit: Fit, gpus: list[Device], threads: int) -> str:
    names = ", ".join(gpu.description for gpu in gpus)
    if fit.is_whole:
        return names
    if fit.layers:
        return f"{names}; {fit.shortage or f'{fit.layers} of {fit.total} layers, as asked for'}"
    why = fit.shortage or (library.passed_over if library.is_loss else "")
    return f"CPU, {threads} threads{'; ' if why else ''}{why}"


def _free(on_gpus: int, beside: int) -> str:
    if on_gpus and beside:
        return f"{_size(on_gpus)} free on the GPU, {_size(beside)} beside it"
    return f"{_size(on_gpus + beside)} free"


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _prompts(model: Model, config: Config) -> dict[str, str]:
    """What becomes of prompts. Raises TemplateError for a template that was asked for and does not run."""
    prompts = PromptEncoder(model, config.chat_template)
    marks = prompts.reasoning
    rows = {"template": _template(prompts)}
    if marks:
        rows["thoughts"] = f"between {marks.start} and {marks.end}"
    if advice := recommendation(model, config.sampling):
        rows["sampling"] = f"the authors recommend {advice}"
    return rows


def _vectors(model: Model) -> dict[str, str]:
    # llama.cpp knows the length only with the weights loaded.
    length = model.metadata.get(f"{model.architecture}.embedding_length", "unknown many")
    return {"vectors": f"{length} numbers, pooled by {model.pooling or 'mean'}"}


def _template(prompts: PromptEncoder) -> str:
    said = [_TEMPLATES[prompts.source]]
    if prompts.reason and prompts.source != "none":
        said.append(prompts.reason)
    if prompts.folds_system:
        said.append("it takes no system message, which goes at the head of the prompt")
    return "; ".join(said)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
