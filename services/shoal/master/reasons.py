"""Why a job is in its phase: constants for people, tests and alert rules."""

SUBMITTED = "Submitted"
NOT_ENOUGH_WORKERS = "NotEnoughWorkers"
NOT_ENOUGH_PARAMETER_SERVERS = "NotEnoughParameterServers"
BEHIND_OTHERS = "BehindOthers"  # the workers it could use are kept for a job that goes first
RETRY_DELAY = "RetryDelay"

WORKERS_FOUND = "WorkersFound"  # an attempt begins
SERVERS_FOUND = "ParameterServersFound"  # the same, of a job without workers of ours
FIRST_STEP = "FirstStep"

WORKER_JOINED = "WorkerJoined"
WORKER_LEFT = "WorkerLeft"  # it was about to end and handed its ranks back
WORKER_LOST = "WorkerLost"
WORKERS_CHANGED = "WorkersChanged"  # some joined and some left at once
REBALANCED = "Rebalanced"  # the same workers, other ranks: one was slower than thought
NO_WORKERS = "NoWorkers"
PAUSED = "Paused"  # on a user's wish: it gets no workers, and keeps its weights
RESUMED = "Resumed"  # a paused job, or one that had been cancelled or had failed

TRAINER_RESTARTED = "TrainerRestarted"  # it was killed, and its agent started it again within the attempt
TRAINERS_KILLED = "TrainersKilled"  # on one worker too often: the others take its ranks
POD_OOM_KILLED = "PodOOMKilled"
POD_CONTAINER_ENDED = "PodContainerEnded"  # for another reason than its memory
POD_EVICTED = "PodEvicted"  # by a drain, a taint, a preemption or the node's own need
POD_DELETED = "PodDeleted"

TRAINER_FAILED = "TrainerFailed"
SHARD_FAILED = "ShardFailed"
PARAMETER_SERVER_LOST = "ParameterServerLost"
SNAPSHOT_FAILED = "SnapshotFailed"  # it was not written; training goes on, unless it was the final one
SNAPSHOT_DAMAGED = "SnapshotDamaged"  # a file is not what was written: the snapshot before is the current one now
RESTORED = "Restored"  # all shards go on from a snapshot
INITIAL_WEIGHTS_GONE = "InitialWeightsGone"
SPEC_NOT_READABLE = "SpecNotReadable"  # another version of Shoal wrote it

TRAINING_DONE = "TrainingDone"  # results are in; the final snapshot is being written
COMPLETED = "Completed"
CANCELLED = "Cancelled"
