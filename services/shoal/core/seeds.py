"""Seeds as a function of what they are for, so that nobody has to hand a generator's state to anybody."""

import hashlib


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed from the job's seed and a purpose such as ("unit", step, rank).

    BLAKE2b (RFC 7693) of the decimal numbers; different purposes give independent streams.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
