"""In which epoch this master leads, as its calls to parameter servers and workers say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.core.errors import Deposed
from shoal.wire.status import raised_from_call


@dataclass(frozen=True, kw_only=True, slots=True)
class Lead:
    epoch: int
    lose: Callable[[Deposed], None]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around each call: whoever has heard a later master refuses this one, which ends then."""
        try:
            with raised_from_call():
                yield
        except Deposed as error:
            self.lose(error)
            raise
