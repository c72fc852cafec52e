"""Channel and server options, in one place so that both sides agree.

A server cuts off clients that ping more often than it allows, so keepalive stands here for both.
"""

import grpc

MEBIBYTE = 1 << 20
UNARY_LIMIT_BYTES = 64 * MEBIBYTE  # a unary push or pull of one layer part; larger layers use the exchange
CONTROL_LIMIT_BYTES = 8 * MEBIBYTE  # everything else: specs, events, losses

_KEEPALIVE_MS = 10_000  # a dead peer without a FIN is noticed within twice this
_CONNECT_MS = 100  # how long one try to connect may take, within a cluster
_LONGEST_BACKOFF_MS = 2_000  # from the beginning of one try to the next
# Clients outside a cluster come through port-forwards, which set up a TLS connection or two and ask a kubelet before
# the first byte arrives. 100 ms for that (the first backoff is the deadline of the first try, unless told otherwise)
# made 7 tries and 3.5 s of a forward that takes 1 s. Less than the deadline of a call, which waits for the try.
_OUTSIDE_CONNECT_MS = 5_000
_OUTSIDE_LONGEST_BACKOFF_MS = 300  # a forward that is back is found within this
_Options = list[tuple[str, int]]

_COMMON: _Options = [
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # 0: no limit
    # Bulk frames of 1 MiB: fewer, larger reads and HTTP/2 frames. Measured here on loopback: 1.9 -> 2.2 GB/s.
    ("grpc.experimental.tcp_read_chunk_size", MEBIBYTE),
    ("grpc.experimental.tcp_min_read_chunk_size", MEBIBYTE),
    ("grpc.experimental.tcp_max_read_chunk_size", MEBIBYTE),
    ("grpc.http2.max_frame_size", 4 * MEBIBYTE),
    # A fixed window: the bandwidth-delay probe opens it so far that a slow reader holds over 100 MiB (seen: 163).
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * MEBIBYTE),
]


def channel_options(
    *,
    limit_bytes: int = CONTROL_LIMIT_BYTES,
    connect_ms: int = _CONNECT_MS,
    longest_backoff_ms: int = _LONGEST_BACKOFF_MS,
) -> _Options:
    return [
        *_COMMON,
        ("grpc.max_receive_message_length", limit_bytes),
        ("grpc.max_send_message_length", limit_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", connect_ms),  # the deadline of one try, in spite of its name
        ("grpc.max_reconnect_backoff_ms", longest_backoff_ms),
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(*, limit_bytes: int = CONTROL_LIMIT_BYTES) -> _Options:
    return [
        *_COMMON,
        ("grpc.max_receive_message_length", limit_bytes),
        ("grpc.max_send_message_length", limit_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.so_reuseport", 0),  # two servers on one port must be an error, not a coin toss
    ]


def open_channel(address: str, *, limit_bytes: int = CONTROL_LIMIT_BYTES) -> grpc.Channel:
    return grpc.insecure_channel(address, options=channel_options(limit_bytes=limit_bytes))


def open_outside_channel(address: str) -> grpc.Channel:
    """For clients that may be outside the cluster, behind a port-forward that is slow to set up and may break."""
    options = channel_options(connect_ms=_OUTSIDE_CONNECT_MS, longest_backoff_ms=_OUTSIDE_LONGEST_BACKOFF_MS)
    return grpc.insecure_channel(address, options=options)


def open_aio_channel(address: str, *, limit_bytes: int = CONTROL_LIMIT_BYTES) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=channel_options(limit_bytes=limit_bytes))
