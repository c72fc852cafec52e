import hypothesis
import pytest
from hypothesis import strategies as st

from shoal.core.errors import Corrupt
from shoal.core.tree import Block
from shoal.wire.exchange.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, Frame, Kind, decode, encode

_U64 = st.integers(0, 2**64 - 1)
_U32 = st.integers(0, 2**32 - 1)
FRAMES = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    attempt=_U64,
    step=_U64,
    start=_U32,
    size=_U32,
    offset=_U64,
    slot=_U32,
    value=st.floats(allow_nan=False),
    correct=_U64,
    samples=_U64,
    payload=st.binary(max_size=64),
)


@hypothesis.given(FRAMES)
def test_what_is_encoded_is_decoded(frame: Frame) -> None:
    decoded = decode(encode(frame))
    assert bytes(decoded.payload) == frame.payload
    assert decoded == Frame(**{**{name: getattr(frame, name) for name in Frame.__slots__}, "payload": decoded.payload})


@hypothesis.given(FRAMES, st.data())
def test_any_flipped_bit_is_noticed(frame: Frame, data: st.DataObject) -> None:
    message = bytearray(encode(frame))
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        decode(bytes(message))


@pytest.mark.parametrize("cut", [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 4])
def test_a_frame_that_is_cut_off_is_noticed(cut: int) -> None:
    with pytest.raises(Corrupt):
        decode(encode(Frame(Kind.MISSING, payload=b"12345678"))[:cut])


def test_a_payload_beyond_the_limit_is_refused() -> None:
    with pytest.raises(Corrupt, match="announces"):
        decode(encode(Frame(Kind.GRADIENT, payload=bytes(MAX_PAYLOAD_BYTES + 1))))


def test_the_header_is_little_endian_and_has_the_documented_length() -> None:
    message = encode(Frame(Kind.GRADIENT, attempt=1, step=0x0102, payload=b"x"))
    assert HEADER_BYTES == 72
    assert message[0] == 2
    assert message[8:16] == b"\x01\0\0\0\0\0\0\0"
    assert message[16:18] == b"\x02\x01"
    assert message[-1:] == b"x"


def test_numbers_that_are_no_node_of_a_tree_are_corrupt() -> None:
    assert Frame(Kind.PUSHED, start=4, size=4).block == Block(start=4, size=4)
    with pytest.raises(Corrupt):
        _ = Frame(Kind.PUSHED, start=2, size=4).block
