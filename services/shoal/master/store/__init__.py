"""What the master must not forget: one interface, one file per implementation, one conformance suite over all.

Nothing here decides: a transition comes with its fence, and the store applies it in one statement or says `Stale`.
"""
