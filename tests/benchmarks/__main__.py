"""`make bench`: every figure with its goal. Exits 1 if one is missed."""

import sys

from tests.benchmarks import digits_overhead, round_speed, start_speed, stream_speed

MEBIBYTE = 1 << 20


def main() -> int:
    met: list[bool] = []

    def figure(name: str, value: float, unit: str, goal: float, *, at_least: bool = False, detail: str) -> None:
        good = value >= goal if at_least else value <= goal
        met.append(good)
        bound = "at least" if at_least else "at most"
        print(
            f"{'ok  ' if good else 'MISS'} {name}: {value:.2f}{unit} (goal: {bound} {goal:g}{unit}); {detail}",
            flush=True,
        )

    stream = stream_speed.run()
    rate = stream["bytes"] / (stream["seconds"] - stream["arithmetic_seconds"])
    socket_rate = stream["bytes"] / stream["socket_seconds"]
    whole = stream["bytes"] / stream["seconds"]
    detail = f"{rate / 1e9:.2f} GB/s ({whole / 1e9:.2f} with the shard's update) to {socket_rate / 1e9:.2f} GB/s"
    figure("gRPC stream / plain socket", rate / socket_rate, "", 0.5, at_least=True, detail=detail)
    for side in ("trainer", "shard"):
        extra = stream[f"{side}_extra_bytes"] / MEBIBYTE
        figure(f"memory beyond the tensors, {side}", extra, " MiB", 64, detail="2 versions and 1 gradient buffer")

    rounds = round_speed.run()
    detail = f"gloo {rounds['gloo'] * 1e3:.0f} ms"
    for name, goal in (("shared memory", 0.5), ("grpc", 3.5)):
        ratio = rounds[name] / rounds["gloo"]
        figure(f"round of 25 M, {name} / gloo", ratio, "", goal, detail=f"{rounds[name] * 1e3:.0f} ms, {detail}")

    digits = digits_overhead.run()
    detail = f"model alone {digits['model alone'] * 1e3:.2f} ms"
    for name, goal in (("shared memory", 0.6), ("grpc", 3.0)):
        extra = (digits[name] - digits["model alone"]) * 1e3
        figure(f"digits, a step beyond the model, {name}", extra, " ms", goal, detail=detail)

    begun = start_speed.run()
    figure("shoal run to the first step", begun["first_step"], " s", 8, detail=f"job {begun['job']:.1f} s")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
