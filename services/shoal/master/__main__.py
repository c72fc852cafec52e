"""`python -m shoal.master`: see `--help`."""

import sys

from shoal.process.lifetime import die_with_parent, end_at_sigterm, end_now, loading


def main() -> None:
    end_at_sigterm()
    die_with_parent()
    with loading():
        import asyncio
        import logging

        from shoal.core.errors import ShoalError, Unavailable
        from shoal.master.app import EX_TEMPFAIL, run
        from shoal.master.settings import MasterSettings
        from shoal.process.logs import configure_logs
        from shoal.process.settings import fail

    try:
        settings = MasterSettings.load(sys.argv[1:])
        configure_logs(log_format=settings.log_format, level=settings.log_level, role="master")
        for chatty in ("alembic", "grpc", "aiosqlite"):  # they tell each start, each loop and each statement
            logging.getLogger(chatty).setLevel(logging.WARNING)
        code = asyncio.run(run(settings))
    except Unavailable as error:  # while it took over: the store went away, or another master was quicker
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EX_TEMPFAIL) from error
    except ShoalError as error:
        fail(error)
        raise AssertionError("fail exits") from error
    end_now(code)


if __name__ == "__main__":
    main()
