"""The command line, `shoal`: arguments in, the SDK or a local cluster in between, text and an exit code out.

No gRPC and no roles here, and nothing that a program could want: that is in `shoal.sdk` and `shoal.local`. torch is
imported by `shoal evaluate` alone.
"""
