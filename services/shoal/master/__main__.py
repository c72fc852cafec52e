"""`python -m shoal.master`: see `--help`."""

import asyncio
import logging
import sys

from shoal.core.errors import ShoalError
from shoal.master.app import run
from shoal.master.settings import MasterSettings
from shoal.process.lifetime import die_with_parent
from shoal.process.logs import configure_logs
from shoal.process.settings import fail


def main() -> None:
    die_with_parent()
    try:
        settings = MasterSettings.load(sys.argv[1:])
        configure_logs(log_format=settings.log_format, level=settings.log_level, role="master")
        for chatty in ("alembic", "grpc", "aiosqlite"):  # they tell each start, each loop and each statement
            logging.getLogger(chatty).setLevel(logging.WARNING)
        code = asyncio.run(run(settings))
    except ShoalError as error:
        fail(error)
        raise AssertionError("fail exits") from error
    raise SystemExit(code)


if __name__ == "__main__":
    main()
