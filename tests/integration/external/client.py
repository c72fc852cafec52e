"""A client that knows grpcio and the protos, and nothing of Shoal: trains a job by unary calls alone.

Usage: client.py FOLDER_OF_GENERATED_CODE MASTER JOB. Prints one JSON object with what it was answered.
"""

import array
import json
import sys

sys.path.insert(0, sys.argv[1])

import grpc

from shoal.wire.v1 import (
    jobs_pb2,
    jobs_pb2_grpc,
    master_pb2,
    master_pb2_grpc,
    parameter_server_pb2,
    parameter_server_pb2_grpc,
)

STEPS = 5


def floats(data: bytes) -> list[float]:
    return array.array("f", data).tolist()


def refusal(call, request) -> str:
    """The status code of a call that must fail."""
    try:
        call(request, timeout=10)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "accepted"


def main(address: str, job_id: str) -> dict:
    master = grpc.insecure_channel(address)
    servers = jobs_pb2_grpc.JobServiceStub(master).ListParameterServers(
        jobs_pb2.ListParameterServersRequest(), timeout=10
    )
    holding = [server for server in servers.servers if job_id in server.job_ids]
    answers: dict = {"layers": {}, "weights": {}, "shards": len(holding)}
    me = {"worker_id": "outsider", "job_id": job_id}
    for server in holding:
        stub = parameter_server_pb2_grpc.ParameterServerServiceStub(
            grpc.insecure_channel(f"{server.host}:{server.port}")
        )
        registered = stub.RegisterWorker(parameter_server_pb2.RegisterWorkerRequest(**me), timeout=30)
        assert registered.success
        for part in registered.layers:
            name = part.layer_name
            answers["layers"].setdefault(name, []).append([part.first, part.last])
            pulled = stub.PullParameters(parameter_server_pb2.PullParametersRequest(**me, layer_name=name), timeout=10)
            first = floats(pulled.parameter_data)
            for step in range(STEPS):
                gradient = array.array("f", [(index % 7) - 3.0 + step for index in range(part.first, part.last)])
                pushed = stub.PushGradients(
                    parameter_server_pb2.PushGradientsRequest(
                        **me, layer_name=name, gradient_data=gradient.tobytes(), version=step
                    ),
                    timeout=10,
                )
                assert pushed.success, pushed.message
                assert pushed.new_version == step + 1
            version = stub.GetParameterVersion(
                parameter_server_pb2.GetParameterVersionRequest(**me, layer_name=name), timeout=10
            ).version
            held = stub.PullParameters(
                parameter_server_pb2.PullParametersRequest(**me, layer_name=name, version=version, have_version=True),
                timeout=10,
            )
            last = floats(
                stub.PullParameters(
                    parameter_server_pb2.PullParametersRequest(**me, layer_name=name), timeout=10
                ).parameter_data
            )
            answers["weights"].setdefault(name, []).append({"first": first, "last": last})
            answers["version"] = version
            answers["bytes when the version is held"] = len(held.parameter_data)
        answers["wrong"] = wrong_input(stub, me, registered.layers[0])
    done = master_pb2_grpc.MasterServiceStub(master).CompleteJob(
        master_pb2.CompleteJobRequest(
            worker_id="outsider",
            job_id=job_id,
            results=master_pb2.JobResults(success=True, accuracy=0.5, loss=1.5, steps=STEPS),
        ),
        timeout=30,
    )
    answers["completed"] = [done.success, done.message]
    return answers


def wrong_input(stub, me: dict, part) -> dict:
    """What each kind of wrong input is answered with."""
    size = (part.last - part.first) * 4
    name, good = part.layer_name, bytes(size)

    def push(**fields) -> parameter_server_pb2.PushGradientsRequest:
        return parameter_server_pb2.PushGradientsRequest(
            **{**me, "layer_name": name, "gradient_data": good, "version": STEPS} | fields
        )

    stale = stub.PushGradients(push(version=STEPS - 1), timeout=10)
    future = stub.PushGradients(push(version=STEPS + 1), timeout=10)
    return {
        "stale version": [stale.success, stale.message, stale.new_version],
        "future version": [future.success, future.message, future.new_version],
        "length": refusal(stub.PushGradients, push(gradient_data=good[:-4])),
        "dtype": refusal(stub.PushGradients, push(dtype="float64")),
        "not finite": refusal(
            stub.PushGradients, push(gradient_data=array.array("f", [float("nan")] * (size // 4)).tobytes())
        ),
        "layer": refusal(stub.PushGradients, push(layer_name="9.weight")),
        "job": refusal(stub.PushGradients, push(job_id="nobody-0")),
        "no worker id": refusal(stub.PushGradients, push(worker_id="")),
        "attempt": refusal(stub.PushGradients, push(attempt=99)),
        "pull of an unknown layer": refusal(
            stub.PullParameters, parameter_server_pb2.PullParametersRequest(**me, layer_name="9.weight")
        ),
        "version of an unknown job": refusal(
            stub.GetParameterVersion,
            parameter_server_pb2.GetParameterVersionRequest(worker_id="outsider", job_id="nobody-0", layer_name=name),
        ),
        "version after all of it": stub.GetParameterVersion(
            parameter_server_pb2.GetParameterVersionRequest(**me, layer_name=name), timeout=10
        ).version,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2], sys.argv[3])))
