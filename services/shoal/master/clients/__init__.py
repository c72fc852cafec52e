"""The master's calls to the other roles: what it asks of parameter servers, and grants pushed to workers."""
