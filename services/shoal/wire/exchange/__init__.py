"""The tensor exchange: how trainers and shards move gradients and weights.

One protocol of small frames (`frames.py`), one pair of interfaces (`base.py`), two transports: `shared_memory.py`
(the tensors are mapped on both sides; only signals travel, over a Unix socket) and `grpc_stream.py` (the tensors
travel in frames of up to 1 MiB on one bidirectional stream of raw bytes). Nothing here knows torch: memory is
handed out as numpy arrays over pages (`memory.py`).
"""
