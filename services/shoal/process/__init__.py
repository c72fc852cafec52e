"""Where the environment and time enter a process: settings, clock, logs, named threads, the host's identity.

Nothing here knows gRPC, torch or what the process is for.
"""
