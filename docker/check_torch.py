"""Says which build of torch this is, and ends a worker's image build if that is not the one asked for.

python check_torch.py ""    any build will do; on a GPU only one for CUDA computes
python check_torch.py 1     one for CUDA
"""

import sys

import torch


def main(cuda: str) -> None:
    build = f"torch {torch.__version__}, {f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"
    sys.stdout.write(f"{build}\n")
    if cuda not in ("", "1"):
        sys.exit(f"error: CUDA={cuda}: 1 is expected, or nothing")
    if cuda and torch.version.cuda is None:
        sys.exit(f"error: CUDA=1, but pip found {build}; name an index of CUDA builds in TORCH_INDEX_URL")
    if not cuda and torch.version.cuda is not None:  # runs on CPUs as well, but most of it is of no use there
        sys.stdout.write(
            "warning: several GB for CUDA; name an index of CPU builds in TORCH_INDEX_URL, or set CUDA=1\n"
        )


if __name__ == "__main__":
    main(sys.argv[1])
