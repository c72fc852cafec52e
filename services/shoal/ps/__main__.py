"""`python -m shoal.ps`: one parameter server process."""

import sys

from shoal.process.allocator import keep_freed_memory
from shoal.process.lifetime import die_with_parent, end_at_sigterm, end_now, loading


def main() -> None:
    end_at_sigterm()
    die_with_parent()
    keep_freed_memory()
    from shoal.core.errors import ShoalError
    from shoal.process.logs import configure_logs
    from shoal.process.settings import fail
    from shoal.ps.settings import PsSettings

    try:
        settings = PsSettings.load(sys.argv[1:])
        configure_logs(log_format=settings.log_format, level=settings.log_level, role="ps")
        with loading():
            from shoal.ps.app import run

        run(settings)
    except ShoalError as error:
        fail(error)
    end_now(0)


if __name__ == "__main__":
    main()
