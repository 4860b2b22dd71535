"""Compiling, caching on disk, and what happens where that is not possible. Each needs a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from kernels_support import needs_triton
from numba.core.caching import IndexDataCacheFile

import fastac.kernels
from fastac.kernels import compiling

PACKAGE = Path(fastac.kernels.__file__).parent
ANNOUNCEMENT = "Compiling fastac's kernels for this machine, once: about 40 seconds.\n"
UNWRITABLE = "/dev/null/x"  # also for root, whom permissions do not stop

# Counts the kernels that were loaded from the cache on disk, and those that were compiled.
COUNT = """
import fastac.kernels
from fastac.kernels.compiling import COMPILED
from fastac.kernels.kernel import KERNELS
entries = [kernel.entry for kernel in KERNELS if kernel.entry is not None]
hits, misses = (sum(sum(getattr(e.stats, kind).values()) for e in entries) for kind in ("cache_hits", "cache_misses"))
loaded = sum(step.cache_hits for step in COMPILED)
print(len(entries) + len(COMPILED), hits + loaded, misses + len(COMPILED) - loaded)
"""

# Runs all kernels that compute (others copy or count), over narrow and wide rollouts; prints a hash of every outcome.
COMPUTE = """
import hashlib, torch
from fastac import kernels
draw = torch.Generator().manual_seed(0)
def numbers(*shape):
    return torch.randn(shape, generator=draw)
def flags(*shape):
    return torch.rand(shape, generator=draw) < 0.05
def room(*shape):
    return torch.zeros(shape)
for steps, envs in [(5, 64), (8, 4), (128, 16)]:
    rows, out = steps * envs, {}
    def call(name, *args, results):
        getattr(kernels, name)(*args, *results)
        out.update({f"{name} {i}": result for i, result in enumerate(results)})
    value, ends, valid = numbers(steps + 1, envs), (flags(steps, envs), flags(steps, envs)), ~flags(steps, envs)
    results = room(steps, envs), room(steps, envs), room(5).double()
    call("gae", numbers(steps, envs), value, *ends, valid, 0.99, 0.95, results=results)
    call("batch_moments", results[0].view(-1), valid.view(-1), results=[room(3).double()])
    logits, action = numbers(rows, 6), room(rows).long()
    chances = torch.rand(rows, generator=draw)
    call("sample_categorical", logits, chances, results=[action, room(rows), room(rows)])
    given = *(numbers(rows) for _ in range(4)), valid.view(-1), "clipped", 1 / rows, 0.0, 1.0, 0.5, 0.01, 0.2, 0.3
    results = room(rows, 6), room(rows), room(5).double()
    call("categorical_loss", logits, numbers(rows), action, *given, results=results)
    results = room(rows, 6), room(6), room(rows), room(5).double()
    call("gaussian_loss", logits, numbers(6), numbers(rows), numbers(rows, 6), *given, results=results)
    param, average, square = numbers(rows), numbers(rows), torch.rand(rows, generator=draw)
    kernels.adam_step(param, numbers(rows), average, square, 1.0, 1e-3, 0.9, 0.999, 1e-8, 3)
    kernels.rmsprop_step(param, numbers(rows), square, 1.0, 1e-3, 0.99, 1e-5, False)
    out.update(param=param, average=average, square=square)
    for activation in ("tanh", "relu"):
        out[activation] = room(rows, 64)
        kernels.dense(logits, numbers(6, 64), numbers(64), activation, out[activation])
    call("sample_gaussian", logits, numbers(6), numbers(rows, 6), results=[room(rows, 6), room(rows)])
    call("standardize", logits, numbers(6), numbers(6), 10, results=[room(rows, 6)])
    for name, gates, inner in (("lstm", 4, 8), ("gru", 3, 24)):
        forward, backward = getattr(kernels, f"{name}_forward"), getattr(kernels, f"{name}_backward")
        by_gate, starts = numbers(steps, envs, gates, 8), flags(steps, envs)
        weight, state = numbers(8, gates, 8), numbers(envs, 16)
        before, inside, hidden = room(steps, envs, 8), room(steps, envs, inner), room(steps, envs, 8)
        forward(by_gate, weight, numbers(gates, 8), state, 0, starts, before, inside, hidden)
        d = numbers(steps, envs, 8), room(steps, envs, inner), room(steps, envs, gates, 8)
        back = weight.view(gates, 8, 8)
        if name == "lstm":
            backward(by_gate, inside, back, state, 0, starts, *d)
        else:
            backward(by_gate, inside, before, back, starts, d[0], d[2], d[1])
        results = by_gate, before, inside, hidden, *d
        out.update({f"{name} {i}": result for i, result in enumerate(results)})
    for name, result in out.items():
        print(steps, envs, name, hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16])
"""

# Runs a kernel, whichever form it is, and says which.
USE = """
import sys, torch
from fastac.kernels import cache_folder, sample_categorical
assert "triton" not in sys.modules
args = torch.zeros(1, 2), torch.full((1,), 0.5), torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1)
sample_categorical(*args)
print(cache_folder(), args[2].item(), round(args[4].item(), 4))
"""


ON_CUDA = """
from fastac.kernels import categorical_loss, gaussian_loss
print(*(loss.on_cuda is loss.reference for loss in (categorical_loss, gaussian_loss)), sep=chr(10))
"""


def start(code, folder=None, module=None, **environment):
    command = [sys.executable, "-B", *(["-m", module] if module else ["-c", code])]
    env = os.environ | environment
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err


def test_the_tests_run_with_compiled_kernels():
    assert fastac.kernels.cache_folder() is not None
    assert fastac.kernels.stack_frames.on_cpu is not fastac.kernels.stack_frames.reference


# Does what `python -m fastac.kernels` does, in the same process.
INSTALL = """
import runpy, sys
runpy.run_module("fastac.kernels", run_name="__main__", alter_sys=True)
"""


def test_a_second_start_compiles_nothing_and_says_where_the_kernels_are():
    code, (counts, where), err = finish(start(COUNT + INSTALL))  # the first was this process's
    entries, hits, misses = map(int, counts.split())
    assert (code, misses, err) == (0, 0, "") and hits == entries > 5
    assert where == f"The CPU kernels are compiled and cached in {fastac.kernels.cache_folder()}."


@pytest.mark.slow
def test_two_processes_may_compile_at_once(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for code, out, err in map(finish, [start(COUNT, **cache), start(COUNT, **cache)]):
        entries, hits, misses = map(int, out[0].split())
        assert (code, err) == (0, ANNOUNCEMENT if misses else "") and hits + misses == entries
    assert finish(start(COUNT, **cache)) == (0, [f"{entries} {entries} 0"], "")


@pytest.mark.slow  # compiles all of them
def test_what_compiles_the_kernels_says_so_and_computes_the_bits_of_what_loads_them(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    (code, (counts, *bits), err), again = (finish(start(COUNT + COMPUTE, **cache)) for _ in range(2))
    entries, hits, misses = map(int, counts.split())
    assert (code, err) == (0, ANNOUNCEMENT) and (hits, misses) == (0, entries) and len(bits) == 3 * 22
    assert again == (0, [f"{entries} {entries} 0", *bits], "")


# What a worker process does; the file must be importable there.
WORKER = """
import multiprocessing, numba
from fastac.kernels.compiling import announcing_compilation

def compile_one():
    with announcing_compilation():
        numba.njit("int64(int64)")(lambda x: x + 1)
        numba.njit("int64(int64)")(lambda x: x + 2)

if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=compile_one)
    worker.start()
    worker.join()
    print(worker.exitcode, flush=True)
    compile_one()
"""


def test_the_first_process_alone_says_that_it_compiles_and_once(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    assert finish(start("", tmp_path, module="worker")) == (0, ["0"], ANNOUNCEMENT)


@pytest.fixture
def read_only(tmp_path):
    """A copy of the kernels whose package can be read, but takes no cache."""
    shutil.copytree(PACKAGE, tmp_path / "fastac" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path / "fastac", tmp_path / "fastac" / "kernels"):
        (folder / "__init__.py").touch()
        (folder / "__pycache__").touch()  # a file where the folder would have to be
    return tmp_path


def test_without_a_cache_the_reference_is_used_and_said_so_once(read_only):
    home = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), UNWRITABLE)
    code, out, err = finish(start(USE + INSTALL, read_only, **home))
    assert (code, out) == (1, ["None 1 0.6931"]), err  # the code is that of an installation without kernels
    assert err.startswith("The compiled kernels cannot be used (RuntimeError: cannot cache function")
    assert err.endswith("set NUMBA_CACHE_DIR to a folder that can be written to.\n") and err.count("\n") == 1


def test_without_numba_or_triton_the_reference_is_used(read_only):
    missing = "import sys\nsys.modules['numba'] = sys.modules['triton'] = None\n"
    use = USE.replace('assert "triton" not in sys.modules', "")
    code, out, err = finish(start(missing + use + ON_CUDA, read_only))
    assert (code, out) == (0, ["None 1 0.6931", "True", "True"]), err
    assert err.startswith("The compiled kernels cannot be used (ModuleNotFoundError: ")
    assert err.count("install the Triton that this PyTorch needs") == 1 and err.count("\n") == 2


# Compiles one kernel, without all others, again and again, and says when it came from the cache. In between it changes
# what the kernel uses, its own file, and another.
COMPILE_ONE = """
from pathlib import Path
from fastac.kernels.compiling import compile_entry, hash_sources
from fastac.kernels.frames import scale_images

def is_cached():
    hash_sources.cache_clear()  # as in another process
    return sum(compile_entry(scale_images.specification, scale_images.numba_form).stats.cache_hits.values()) == 1

print(is_cached(), is_cached())
for name in ("numba_tools.py", "frames.py", "gae.py"):
    with open(Path("fastac", "kernels", name), "a") as file:
        file.write("# changed")
    print(is_cached(), is_cached())
"""


def test_a_change_in_any_file_of_the_folder_recompiles(tmp_path):
    folder = tmp_path / "fastac" / "kernels"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fastac" / "__init__.py").touch()
    (folder / "__init__.py").write_text("")  # compiles nothing

    code, out, err = finish(start(COMPILE_ONE, tmp_path, NUMBA_CACHE_DIR=""))
    assert (code, out, err) == (0, ["False True"] * 4, "")


# What the interpreter takes, the compiler may not: it can be asked without a device.
COMPILE_FOR_GPU = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import fastac.kernels
from importlib import import_module
from fastac.kernels.triton_tools import block_shape, compile_marked

compile_marked()
sampling, categorical, gaussian = (
    import_module(f"fastac.kernels.{name}") for name in ("sampling", "categorical_loss", "gaussian_loss")
)
types = {"f": "*fp32", "d": "*fp64", "u": "*u8", "l": "*i64", "F": "fp32", "i": "i32"}
kernels = []
for num_columns in (1, 2, 18):
    rows, columns = block_shape(num_columns)
    block = {"NUM_ROWS": rows, "NUM_COLUMNS": columns}
    kernels.append((sampling._sample_rows, "fflffii", block))
    for clips in (True, False):
        kernels.append((categorical._categorical_rows, "fflfffuFFFFFFFffdii", {"CLIPS": clips, **block}))
        kernels.append((gaussian._gaussian_rows, "fffffffuFFFFFFFFffddii", {"CLIPS": clips, **block}))
for kernel, arguments, constants in kernels:
    names = [parameter.name for parameter in kernel.params]
    numbers = {name: types[letter] for name, letter in zip(names, arguments)}
    signature = numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    assert compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]
print(len(kernels))
"""


@pytest.mark.slow
@needs_triton
def test_triton_compiles_every_kernel_for_a_gpu(tmp_path):
    code, out, err = finish(start(COMPILE_FOR_GPU, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)))
    assert (code, out) == (0, ["15"]), err


def do_nothing(block):
    """Stands for a kernel."""


def test_code_that_could_not_be_saved_is_not_that_of_earlier_sources(tmp_path, monkeypatch):
    """Numba writes its index before the code: a full disk in between must not join the new one and the old one."""

    def fill_up(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    hits = []
    for stamp, is_full in (("old", False), ("new", True), ("new", False), ("new", False)):
        with monkeypatch.context() as patched:
            patched.setattr(compiling, "hash_sources", lambda stamp=stamp: stamp)
            if is_full:
                patched.setattr(IndexDataCacheFile, "_save_data", fill_up)
            compiling.compile_block(do_nothing, compiling.FolderCache)
            hits.append(compiling.COMPILED[-1].cache_hits)
    assert hits == [0, 0, 0, 1]
