"""Everything that knows protobuf or gRPC, and the tensor exchange between trainers and shards.

Nothing here decides anything: no policy, no state of a job.
"""
