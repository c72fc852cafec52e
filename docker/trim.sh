#!/bin/sh
# Takes out of the virtual environment what no role uses. What the roles load is imported after this, so that a build
# fails if something is missing.
set -eu
cd /opt/shoal/lib/python3*/site-packages

# The packages' own tests, and what SQLAlchemy has for the tests of others: nothing but tests imports them.
find . -depth -type d \( -name tests -o -name test \) -exec rm -r {} +
rm -rf sqlalchemy/testing alembic/testing

# Libraries to link into other programs: there is neither a compiler nor a linker.
find . -type f -name '*.a' -delete

# Of torch: 62 MB of headers and CMake files for compilers, 45 MB of test programs and protobuf's compiler.
# bin/torch_shm_manager stays: `import torch` fails without it.
if [ -d torch ]; then
    rm -rf torch/include torch/share
    find torch/bin -type f ! -name torch_shm_manager -delete
fi
