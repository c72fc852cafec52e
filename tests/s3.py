"""An S3 server of this test process: moto's, over real HTTP."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "snapshots"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    endpoint: str
    server: ThreadedMotoServer

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """By which every client finds it, boto3 and s3fs alike."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """With the bucket, and this process' environment set to it for the length of the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    running = S3Server(endpoint=f"http://{host}:{port}", server=server)
    before = {name: os.environ.get(name) for name in running.environment}
    os.environ.update(running.environment)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield running
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
