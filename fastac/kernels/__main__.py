"""`python -m fastac.kernels` compiles the kernels, so that the first run starts as fast as the second."""

import sys

from fastac.kernels import cache_folder

if __name__ == "__main__":
    folder = cache_folder()  # importing the kernels has compiled them, or said why not
    if folder is None:
        sys.exit(1)
    print(f"The CPU kernels are compiled and cached in {folder}.")
