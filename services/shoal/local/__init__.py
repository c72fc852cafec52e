"""A cluster of real processes on this machine: a master, parameter servers and workers.

    from shoal.local import Cluster

    with Cluster(workers=2, shards=2) as cluster, cluster.client() as client:
        ...

Nothing here imports a role's code: roles are started as programs (`python -m shoal.master` and so on), as anywhere
else, and spoken to by the network. No process outlives its cluster. Faults to put on a cluster are values
(`FaultPlan`), and it is counted that they happened.
"""

from shoal.local.cluster import Cluster
from shoal.local.faults import Fault, FaultPlan, FaultReport

__all__ = ["Cluster", "Fault", "FaultPlan", "FaultReport"]
