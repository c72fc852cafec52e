"""gRPC in front of the master: each method converts a message, calls one function, and converts its answer.

No decision and no state in here.
"""
