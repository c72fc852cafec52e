"""Nouns and rules: jobs, ranks and their tree, the plan of steps, the layout of parameters, errors.

Everything here is pure. No I/O, no clock, no gRPC, no torch, no threads.
"""
