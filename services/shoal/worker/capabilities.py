"""What this machine can do, as far as it can be seen."""

import importlib.util

from shoal.core.job import Capabilities


def has_gpu() -> bool:
    """Does the NVIDIA driver show a GPU? False too where the driver or its Python binding is not there."""
    if importlib.util.find_spec("pynvml") is None:
        return False
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    finally:
        pynvml.nvmlShutdown()


def detect(*, supported_models: tuple[str, ...], max_concurrent_jobs: int) -> Capabilities:
    return Capabilities(
        has_gpu=has_gpu(),
        supported_models=frozenset(supported_models),
        max_concurrent_jobs=max_concurrent_jobs,
    )
