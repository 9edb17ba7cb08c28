"""How much of the real model goes on GPUs that are made up here, as there may be none: sizes are the file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from devices import made_up

from nrvna.config import Config
from nrvna.engine.fitting import Fit, weights_by_layer
from nrvna.engine.shape import choose_shape
from nrvna.limits import Limits
from nrvna.llama import Model
from nrvna.llama.gguf import parts_of

LAYERS = 30


def fit(path: Path, *free: int, most: int = 99, **settings: Any) -> Fit:
    return Fit(path, Config(**settings), made_up(*free), most=most, micro_batch=512)


def test_the_sizes_of_the_layers_add_up_to_the_models(model: Model, model_file: Path) -> None:
    layers, output = weights_by_layer(model_file)
    assert len(layers) == LAYERS
    # The embeddings read the input on the CPU, and compute the logits as well.
    assert abs(sum(layers) + output - model.size_bytes) < 4096


def test_embeddings_that_only_read_the_input_are_not_counted(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from make_models import LAST, make_decoder

    untied = make_decoder(tmp_path / "untied.gguf", pooling=LAST, tied=False)
    assert weights_by_layer(untied)[1] == weights_by_layer(tiny_models["decoding embedder"])[1]


def test_a_gpu_that_is_large_enough_takes_all(model_file: Path) -> None:
    found = fit(model_file, 80 << 30)
    assert (found.layers, found.shortage, found.is_whole) == (LAYERS + 1, "", True)


def test_a_small_gpu_takes_what_fits_and_says_so(model_file: Path) -> None:
    found = fit(model_file, 540 << 20)
    assert 0 < found.layers < LAYERS and not found.is_whole
    said = "layers fit on the GPU, where 0.6 GB are free: the others are computed by the CPU"
    assert found.shortage == f"{found.layers} of 31 {said}"
    nothing = fit(model_file, 100 << 20, 100 << 20)
    assert (nothing.layers, nothing.is_whole) == (0, False)
    assert nothing.shortage == "0 of 31 layers fit on 2 GPUs, where 0.2 GB are free: the CPU computes alone"


def test_room_is_about_the_same_before_and_after_loading(model: Model, model_file: Path) -> None:
    loaded = model.size_bytes
    alone = fit(model_file)
    assert alone.room(model, unloaded=loaded) == alone.room(model)
    before = fit(model_file, 8 << 30).room(model, unloaded=loaded)
    # The input's embeddings are held by the CPU, and in this model by the GPU as well, for the logits.
    assert abs(before - fit(model_file, (8 << 30) - loaded).room(model)) < 0.01 * before


def test_a_smaller_cache_leaves_room_for_more_layers(model_file: Path) -> None:
    whole, small = (fit(model_file, 540 << 20, kv_type=kind).layers for kind in ("f16", "q8_0"))
    assert whole < small
    assert fit(model_file, 540 << 20, ctx=1024).layers > whole
    assert fit(model_file, 540 << 20, ctx=1024, parallel=8).layers < whole


def test_what_says_which_cells_are_seen_is_counted_once_and_not_for_each_layer(
    model: Model, model_file: Path
) -> None:
    many = {"ctx": 1024, "parallel": 64}
    cells = many["ctx"] * many["parallel"]
    needed = model.size_bytes + model.kv_cache_bytes(cells) + cells * 512 * 6
    # A gigabyte is more than the margin.
    assert fit(model_file, needed + (1 << 30), **many).layers == LAYERS + 1


def test_no_more_layers_than_were_wished_and_none_without_a_gpu(model_file: Path) -> None:
    assert fit(model_file, 80 << 30, most=5).layers == 5
    assert fit(model_file, 80 << 30, most=0).layers == 0
    assert fit(model_file).layers == 0


def test_jobs_and_context_follow_the_gpus_memory_where_it_holds_the_model(model: Model, model_file: Path) -> None:
    config = Config()
    rooms = [fit(model_file, free << 30).room(model) for free in (1, 2, 8)]
    assert rooms == sorted(rooms)
    shapes = [choose_shape(model, room, config, 256) for room in rooms]
    assert shapes[0].cells < shapes[1].cells < shapes[2].cells == 4096 + 256 * 1024
    # The weights are in its memory already: what is free is for the cells alone.
    assert rooms[2] > 0.8 * (8 << 30) / (model.kv_cache_bytes(1) + 512 * 6)


def test_layers_on_the_cpu_take_its_memory(model: Model, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = fit(model_file, 80 << 30, most=16)
    monkeypatch.setattr("nrvna.engine.fitting.available_memory", lambda: 1 << 30)
    assert half.room(model) < 100_000
    alone = fit(model_file)
    assert alone.room(model) == (int((1 << 30) * 0.7) - model.size_bytes) // model.kv_cache_bytes(1)


def test_a_shape_stays_within_its_limits(model: Model) -> None:
    config = Config()
    free = choose_shape(model, 1 << 20, config, 32)
    held = choose_shape(model, 1 << 20, config, 32, Limits(4, 1024))
    assert (free.parallel, free.context) == (32, 4096)
    assert (held.parallel, held.context, held.cells) == (4, 1024, 4096)
    named = choose_shape(model, 1 << 20, Config(parallel=16, ctx=2048, reproducible=1), 8, Limits(3, 512))
    assert (named.parallel, named.context, named.cells) == (3, 512, 1536)


def test_a_model_in_several_files_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    first = tmp_path / "big-00001-of-00003.gguf"
    assert [path.name for path in parts_of(first)] == [f"big-0000{index}-of-00003.gguf" for index in (1, 2, 3)]
    assert parts_of(tmp_path / "small.gguf") == [tmp_path / "small.gguf"]
