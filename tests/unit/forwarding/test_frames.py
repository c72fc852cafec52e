import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websocket import ABNF

from shoal.forwarding import frames
from shoal.forwarding.frames import Closed, Data, Failure, Ping, ProtocolError, Reader

GREETINGS = (b"\0\x9e\x1b", b"\1\x9e\x1b")  # port 7070 on both channels


def server_frame(payload: bytes, opcode: int = ABNF.OPCODE_BINARY, *, final: bool = True) -> bytes:
    head = bytes([final << 7 | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + struct.pack(">BH", 126, len(payload)) + payload
    return head + struct.pack(">BQ", 127, len(payload)) + payload


def greeted() -> Reader:
    reader = Reader()
    for greeting in GREETINGS:
        assert list(reader.feed(server_frame(greeting))) == []
    return reader


@settings(deadline=None)  # other tests of the machine are no reason to fail
@given(
    sizes=st.lists(st.sampled_from([1, 2, 124, 125, 126, 127, 65_534, 65_535, 65_536, 70_000]), max_size=4),
    cut=st.integers(min_value=1, max_value=40_000),
)
def test_bytes_cut_anywhere_come_out_whole(sizes, cut):
    payloads = [bytes([index % 251]) * size for index, size in enumerate(sizes)]
    stream = b"".join(map(server_frame, GREETINGS)) + b"".join(server_frame(b"\0" + payload) for payload in payloads)
    reader = Reader()
    events = [event for at in range(0, len(stream), cut) for event in reader.feed(stream[at : at + cut])]
    assert events == [Data(payload) for payload in payloads]


def test_fragments_become_one_message_and_control_frames_may_come_between():
    reader = greeted()
    stream = (
        server_frame(b"\0one ", final=False)
        + server_frame(b"are you there", ABNF.OPCODE_PING)
        + server_frame(b"two", ABNF.OPCODE_CONT)
        + server_frame(b"", ABNF.OPCODE_PONG)
        + server_frame(b"\1pod is gone")
        + server_frame(struct.pack(">H", 1000), ABNF.OPCODE_CLOSE)
    )
    assert list(reader.feed(stream)) == [Ping(b"are you there"), Data(b"one two"), Failure("pod is gone"), Closed()]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (server_frame(b"\0late"), "does not begin with its port"),
        (server_frame(b"\2\x9e\x1b"), "no known channel"),
        (server_frame(b""), "no known channel"),
        (server_frame(b"text", ABNF.OPCODE_TEXT), "a frame of kind 1"),
        (struct.pack(">BBQ", 0x82, 127, 1 << 40), "a frame of 1099511627776 bytes"),
        (b"\x82\x80\0\0\0\0", "mask"),
        (b"\xc2\x00", "reserved"),
    ],
)
def test_what_is_no_port_forward_is_refused(stream, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        list(Reader().feed(stream))


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 65_534, 65_535, 65_536])
def test_what_is_sent_is_masked_and_says_its_length(size):
    payload = b"x" * size
    frame = frames.data_frame(payload)
    assert frame[0] == 0x82
    assert frame[1] & 0x80
    head = {126: 4, 127: 10}.get(frame[1] & 0x7F, 2)
    mask, body = frame[head : head + 4], frame[head + 4 :]
    assert len(body) == size + 1
    assert bytes(byte ^ mask[index % 4] for index, byte in enumerate(body)) == b"\0" + payload
