"""Train a model from Python, and watch it survive the loss of a worker.

Starts a master, two parameter servers and two workers as processes of this machine, trains a small network on
handwritten digits, kills a worker on the way and adds one, saves the model.

    python examples/basic_example.py
"""

from pathlib import Path

from shoal.local import Cluster

SPEC = Path(__file__).with_name("digits.yaml")


def main() -> None:
    with Cluster(workers=2, shards=2) as cluster, cluster.client() as client:
        print(f"a master at {cluster.address}, workers {', '.join(cluster.workers)}")
        job_id = client.submit(SPEC).job_id

        killed = False
        for job in client.watch(job_id):
            print(f"{job.phase:<10} step {job.step}/{job.total_steps or '?'} on {len(job.workers)} workers")
            if job.step >= 100 and not killed and not job.ended:
                cluster.kill_worker("worker-1")
                print(f"killed worker-1, started {cluster.add_worker(wait=False)}")
                killed = True

        job = client.get(job_id)
        if job.results is None or not job.succeeded:
            raise SystemExit(f"the job ended as {job.phase}: {job.message}")
        saved = client.download(job_id, Path("runs") / job_id)
        print(f"accuracy {job.results.accuracy:.4f} on held-out digits, loss {job.results.loss:.4f}")
        print(f"weights  {saved.weights_sha256}")
        print(f"model    {saved.folder}")


if __name__ == "__main__":
    main()
