"""Which layers go on which GPU, and how many fit: numbers alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nrvna.engine.offload import cells_that_fit, layers_that_fit, placement, room_beside

GB = 1 << 30
gpus = st.lists(st.integers(0, 100), min_size=1, max_size=4)
sizes = st.lists(st.integers(0, 20), min_size=1, max_size=40)


def taken(layers: list[int], output: int, kv: int, room: list[int], on_gpu: int) -> list[int]:
    """What each GPU has to hold."""
    held = [0] * len(room)
    needs = [*(size + kv for size in layers), output]
    for need, gpu in zip(needs, placement(len(layers), on_gpu, room), strict=True):
        if gpu is not None:
            held[gpu] += need
    return held


def test_the_last_layers_go_first_and_what_computes_the_logits_counts_as_one() -> None:
    assert placement(4, 0, [GB]) == [None] * 5
    assert placement(4, 1, [GB]) == [None, None, None, None, 0]
    assert placement(4, 3, [GB]) == [None, None, 0, 0, 0]
    assert placement(4, 99, [GB]) == [0] * 5


def test_several_gpus_get_layers_in_proportion_to_their_parts() -> None:
    assert placement(7, 99, [GB, GB]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert placement(7, 99, [3 * GB, GB]) == [0, 0, 0, 0, 0, 0, 1, 1]
    assert placement(7, 4, [GB, GB]) == [None, None, None, None, 0, 0, 1, 1]
    assert placement(3, 99, [0, GB]) == [1, 1, 1, 1]


def test_a_model_that_fits_is_on_the_gpu_as_a_whole_and_no_more_than_was_wished() -> None:
    layers = [100] * 32
    assert layers_that_fit(layers, 300, 10, room_beside(500, [5000]), 99) == 33
    assert layers_that_fit(layers, 300, 10, room_beside(500, [5000]), 7) == 7
    assert layers_that_fit(layers, 300, 10, room_beside(500, [5000]), 0) == 0


def test_a_model_that_is_too_large_leaves_layers_to_the_cpu() -> None:
    # 300 for the logits, 500 to spare: 10 layers of 110 are left.
    assert layers_that_fit([100] * 32, 300, 10, room_beside(500, [1900]), 99) == 11
    assert layers_that_fit([100] * 32, 300, 10, room_beside(500, [700]), 99) == 0


def test_a_gpu_without_room_beside_its_margin_gets_nothing_and_keeps_nothing_from_the_others() -> None:
    assert room_beside(500, [400, 5000, 500]) == [0, 4500, 0]
    assert layers_that_fit([100] * 32, 300, 10, room_beside(500, [400, 5000, 500]), 99) == 33


@given(layers=sizes, output=st.integers(0, 40), kv=st.integers(0, 5), free=gpus, margin=st.integers(0, 20))
def test_what_is_said_to_fit_fits_and_nothing_more_would(
    layers: list[int], output: int, kv: int, free: list[int], margin: int
) -> None:
    wish = len(layers) + 1
    room = room_beside(margin, free)
    found = layers_that_fit(layers, output, kv, room, wish)
    assert 0 <= found <= wish

    def fits(on_gpu: int) -> bool:
        used = {gpu for gpu in placement(len(layers), on_gpu, room) if gpu is not None}
        held = taken(layers, output, kv, room, on_gpu)
        return len(used) > 0 and all(held[gpu] + margin <= free[gpu] for gpu in used)

    assert found == 0 or fits(found)
    assert not any(fits(more) for more in range(found + 1, wish + 1))


@given(layers=sizes, output=st.integers(0, 40), free=st.integers(0, 400), margin=st.integers(0, 20))
def test_on_one_gpu_more_memory_never_holds_less(layers: list[int], output: int, free: int, margin: int) -> None:
    wish = len(layers) + 1
    less = layers_that_fit(layers, output, 1, room_beside(margin, [free]), wish)
    assert less <= layers_that_fit(layers, output, 1, room_beside(margin, [free + 10]), wish)
    assert less >= layers_that_fit(layers, output, 2, room_beside(margin, [free]), wish)
    assert less >= layers_that_fit(layers, output, 1, room_beside(margin + 1, [free]), wish)


@given(count=st.integers(1, 80), on_gpu=st.integers(0, 100), free=gpus)
def test_layers_lie_in_the_order_of_the_gpus_and_none_is_left_out(count: int, on_gpu: int, free: list[int]) -> None:
    places = placement(count, on_gpu, free)
    assert len(places) == count + 1
    dealt = [place for place in places if place is not None]
    assert places == [None] * (len(places) - len(dealt)) + sorted(dealt)
    assert len(dealt) == (min(on_gpu, count + 1) if sum(free) else 0)
    assert all(free[place] for place in dealt)


@given(
    count=st.integers(1, 40),
    on_gpu=st.integers(0, 41),
    cell=st.integers(1, 9),
    free=st.lists(st.integers(1, 10_000), min_size=1, max_size=3),
    margin=st.integers(0, 500),
    mask=st.integers(0, 20),
    ram=st.integers(0, 100_000),
)
def test_the_cells_that_fit_leave_every_memory_room_and_one_more_would_not(
    count: int, on_gpu: int, cell: int, free: list[int], margin: int, mask: int, ram: int
) -> None:
    places = placement(count, on_gpu, free)
    cells = cells_that_fit(places, cell, free, margin, mask, ram)
    layers = places[:-1]

    def fits(count: int) -> bool:
        on_cpu = count * layers.count(None) * cell <= ram or None not in layers
        there = ((gpu, max(0, size - margin)) for gpu, size in enumerate(free) if gpu in places)
        return on_cpu and all(count * max(1, layers.count(gpu) * cell + mask) <= left for gpu, left in there)

    assert fits(cells)
    assert not fits(cells + 1)
