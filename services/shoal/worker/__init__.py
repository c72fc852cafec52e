"""The worker role: an agent that registers, heartbeats and takes grants, and one trainer process per job.

The agent does not import torch; `trainer/` does. Nothing here outlives a kill at any line.
"""
