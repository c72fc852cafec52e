"""An attempt's life, from its shares to its end, and the snapshots on the way.

`live.py` holds the live jobs in memory, in step with the store. `beginning.py` makes or restores the shares,
`following.py` watches the steps, `completion.py` takes the result, `endings.py` ends an attempt in any other way.
`cadence.py` and `snapshots.py` keep what a next attempt can go on from, `sweeping.py` deletes what none needs.
"""
