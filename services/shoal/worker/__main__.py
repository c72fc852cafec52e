"""`python -m shoal.worker`: one worker agent process."""

import sys

from shoal.process.lifetime import die_with_parent, end_at_sigterm, end_now, loading


def main() -> None:
    end_at_sigterm()
    die_with_parent()
    with loading():
        import asyncio

        from shoal.core.errors import ShoalError
        from shoal.process.logs import configure_logs
        from shoal.process.settings import fail
        from shoal.worker.app import serve
        from shoal.worker.settings import WorkerSettings

    try:
        settings = WorkerSettings.load(sys.argv[1:])
        configure_logs(log_format=settings.log_format, level=settings.log_level, role="worker")
        asyncio.run(serve(settings))
    except ShoalError as error:
        fail(error)
    end_now(0)


if __name__ == "__main__":
    main()
