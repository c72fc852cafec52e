"""A cluster of real processes is killed, frozen, cut off and starved by plan, while jobs run: nothing of it shows.

`python -m tests.chaos --minutes N --seed S` (`make chaos`) does it for as long as wanted; tests/faults has the short
one. A seed makes the plan: what happens to whom, and when. Nothing here leaves this machine.
"""
