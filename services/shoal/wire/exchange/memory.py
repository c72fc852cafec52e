"""Pages: memory shared between processes, and address space in which ranges of several owners lie side by side."""

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import Exhausted
from shoal.core.layout import PAGE

FloatArray = npt.NDArray[np.float32]
ELEMENT_BYTES = 4
CAN_SHARE = mmap.PAGESIZE <= PAGE * ELEMENT_BYTES  # else a range could not start on a page of the kernel

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


def create_shared(name: str, elements: int) -> int:
    """A descriptor of anonymous shared memory (memfd) of that many float32 zeros. The caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, elements * ELEMENT_BYTES)
    return fd


class FlatSpace:
    """Address space for `elements` float32, contiguous, into which ranges are mapped one by one.

    Arrays over it keep it alive; it is unmapped when the last of them and the space itself are gone.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self._bytes = max(elements * ELEMENT_BYTES, mmap.PAGESIZE)
        self._address = _map(None, self._bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)

    def map_private(self, start: int, stop: int) -> None:
        """Puts zeroed memory of this process at elements [start, stop)."""
        if stop > start:
            self._place(start, stop, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)

    def map_shared(self, start: int, stop: int, fd: int, *, writable: bool) -> None:
        """Puts the shared memory behind `fd` at elements [start, stop), multiples of PAGE.

        Without `writable` a write ends the process: the arrays look writable to numpy, the kernel refuses.
        """
        if stop > start:
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self._place(start, stop, protection, mmap.MAP_SHARED, fd)

    def array(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Elements [start, stop) as one array."""
        stop = self.elements if stop is None else stop
        memory: Any = (ctypes.c_float * (stop - start)).from_address(self._address + start * ELEMENT_BYTES)
        memory.space = self  # the array must not outlive its pages
        flat: FloatArray = np.frombuffer(memory, dtype=np.float32)
        return flat

    def __del__(self) -> None:
        address, self._address = getattr(self, "_address", 0), 0
        if address:
            _libc.munmap(address, self._bytes)

    def _place(self, start: int, stop: int, protection: int, flags: int, fd: int) -> None:
        if start % PAGE or not 0 <= start <= stop <= self.elements:
            raise ValueError(f"range {start}..{stop} is not on pages of 0..{self.elements}")
        address = self._address + start * ELEMENT_BYTES
        _map(address, (stop - start) * ELEMENT_BYTES, protection, flags | _MAP_FIXED, fd)


def _map(address: int | None, length: int, protection: int, flags: int, fd: int = -1) -> int:
    result = _libc.mmap(address, length, protection, flags, fd, 0)
    if result is None or result == _MAP_FAILED:
        code = ctypes.get_errno()
        raise Exhausted(f"cannot map {length} bytes of memory: {os.strerror(code)}")
    return int(result)
