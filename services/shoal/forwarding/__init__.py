"""From a port of this machine to the master of a release in Kubernetes, for `shoal connect`.

`kube.py` finds the release and its pod by the official client (the extra shoal[kubernetes]); `target.py` knows which
pod connections go to at the moment; `forwarder.py` accepts them; `carrying.py` moves one connection's bytes; and
`frames.py` is how they look to the Kubernetes API. Nothing here knows what the bytes mean: no gRPC, no jobs, no SDK.
"""
