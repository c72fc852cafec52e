"""Which workers and parameter servers are there: their leases, their long polls, and the probe before one is lost."""
