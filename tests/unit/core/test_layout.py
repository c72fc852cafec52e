"""The layout: balanced, whole pages, every element in one place."""

import hypothesis
import hypothesis.strategies as st
import pytest

from shoal.core.errors import InvalidInput
from shoal.core.layout import PAGE, Layer, LayerKind, Layout, flatten, partition


def layers_of(*elements: int) -> tuple[Layer, ...]:
    return tuple(Layer(name=f"layer{i}", shape=(n,)) for i, n in enumerate(elements))


def held(layout: Layout) -> list[int]:
    """Real elements of each shard."""
    return [sum(piece.elements for piece in share.slices) for share in layout.shares]


def check(layout: Layout) -> None:
    """What holds of every layout."""
    assert layout.length % PAGE == 0
    assert [share.index for share in layout.shares] == list(range(len(layout.shares)))
    bounds = [0, *(share.stop for share in layout.shares)]
    assert [share.start for share in layout.shares] == bounds[:-1]
    assert bounds[-1] == layout.length
    assert all(bound % PAGE == 0 for bound in bounds)
    for layer, offset in zip(layout.layers, layout.offsets, strict=True):
        assert offset % PAGE == 0
        pieces = [(share, share.by_name[layer.name]) for share in layout.shares if layer.name in share.by_name]
        elements = [element for _, piece in pieces for element in (piece.first, piece.last)]
        if layer.elements:
            assert elements[0] == 0
            assert elements[-1] == layer.elements
            assert elements[1:-1:2] == elements[2::2]  # each piece begins where the one before ends
        for share, piece in pieces:
            assert share.start + piece.offset == offset + piece.first
            assert piece.offset % PAGE == 0
            assert piece.first % PAGE == 0
            assert piece.offset + piece.elements <= share.length
    assert sum(held(layout)) == sum(layer.elements for layer in layout.layers)


sizes = st.lists(st.one_of(st.integers(1, 5000), st.integers(1, 400_000)), min_size=1, max_size=12)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(elements=sizes, shards=st.integers(1, 9))
def test_shares_are_equal_to_five_percent_or_a_page(elements: list[int], shards: int) -> None:
    layout = partition(layers_of(*elements), shards=shards)
    check(layout)
    fair = sum(elements) / shards
    for count in held(layout):
        assert abs(count - fair) <= max(0.05 * fair, PAGE)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
def test_a_layer_that_dominates_is_cut(shards: int) -> None:
    layout = partition(layers_of(10, 1_000_003, 3, 64), shards=shards)
    check(layout)
    fair = 1_000_080 / shards
    assert all(abs(count - fair) <= 0.05 * fair for count in held(layout))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(elements=sizes, shards=st.integers(1, 9))
def test_whole_layers_are_never_cut(elements: list[int], shards: int) -> None:
    layout = partition(layers_of(*elements), shards=shards, whole=True)
    check(layout)
    pieces = [piece for share in layout.shares for piece in share.slices]
    assert sorted(piece.layer.name for piece in pieces) == sorted(layer.name for layer in layout.layers)
    assert all((piece.first, piece.last) == (0, piece.layer.elements) for piece in pieces)
    fair, largest = sum(elements) / shards, max(elements)
    assert max(held(layout)) <= fair + largest


def test_more_shards_than_pages_leave_some_empty() -> None:
    layout = partition(layers_of(5, 2000), shards=10)
    check(layout)
    assert len(layout.shares) == 10
    assert 1 <= len(layout.active) <= 3
    assert {piece.layer.name for share in layout.active for piece in share.slices} == {"layer0", "layer1"}


def test_a_share_knows_its_slices_by_name() -> None:
    layout = partition(layers_of(PAGE, 10), shards=1)
    share = layout.shares[0]
    assert share.by_name["layer1"].offset == PAGE
    assert share.length == 2 * PAGE


def test_parameters_stand_last_first_and_buffers_behind() -> None:
    parameters = layers_of(1, 2, 3)
    buffers = (Layer(name="mean", shape=(4,), kind=LayerKind.BUFFER),)
    names = [layer.name for layer in flatten(parameters=parameters, buffers=buffers)]
    assert names == ["layer2", "layer1", "layer0", "mean"]


def test_pages_and_elements_of_a_layer() -> None:
    assert (Layer(name="x", shape=()).elements, Layer(name="x", shape=()).pages) == (1, 1)
    assert (Layer(name="x", shape=(32, 32)).pages, Layer(name="x", shape=(1025,)).pages) == (1, 2)
    assert (Layer(name="x", shape=(0, 3)).elements, Layer(name="x", shape=(0, 3)).pages) == (0, 0)


@pytest.mark.parametrize(
    ("layers", "shards", "said"),
    [
        (layers_of(1), 0, "at least 1"),
        ((), 1, "no parameters"),
        (layers_of(0), 1, "no parameters"),
        ((*layers_of(1), *layers_of(2)), 1, "layer0"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(layers: tuple[Layer, ...], shards: int, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        partition(layers, shards=shards)


@hypothesis.given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(1, 8), st.booleans())
def test_empty_shares_come_last(sizes: list[int], shards: int, whole: bool) -> None:
    layers = tuple(Layer(name=str(index), shape=(size,)) for index, size in enumerate(sizes))
    lengths = [share.length for share in partition(layers, shards=shards, whole=whole).shares]
    assert lengths[0] > 0
    assert all(length == 0 for length in lengths[lengths.index(0) if 0 in lengths else len(lengths) :])
