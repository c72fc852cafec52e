"""Where snapshots are kept: a folder of this machine, or anything that fsspec can reach and several servers share.

`base.py` is the interface, one file for each implementation, `opening.py` the choice between them.
"""
