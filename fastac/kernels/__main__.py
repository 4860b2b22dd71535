"""`python -m fastac.kernels` compiles the kernels in advance, so that the first run starts fast."""

import sys

from fastac.kernels import cache_folder

if __name__ == "__main__":
    folder = cache_folder()  # the import has compiled the kernels or logged why it could not
    if folder is None:
        sys.exit(1)
    print(f"The CPU kernels are compiled and cached in {folder}.")
