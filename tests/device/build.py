"""Compiles the device of `device.cpp` once for each torch, into the user's cache.

Nothing here imports torch, which has to come after the library.
"""

import hashlib
import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
OPTIONS = ("-O1", "-std=c++20", "-shared", "-fPIC")


class Unavailable(Exception):
    """Why there can be no device here, in a few words."""


def library() -> Path:
    """The compiled library.

    Raises:
        Unavailable: no C++ compiler, or a torch that computes on GPUs of its own.
        subprocess.CalledProcessError: the source does not compile against this torch.
    """
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("torch is not installed")
    torch = Path(next(iter(spec.submodule_search_locations)))
    if list(torch.glob("lib/libtorch_cuda*")):
        raise Unavailable("this torch computes on GPUs of its own")
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler; install g++, or set CXX")
    key = hashlib.sha256(" ".join((SOURCE.read_text(encoding="utf-8"), _version(), compiler, *OPTIONS)).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heal-tests"
    built = cache / f"device-{key.hexdigest()[:16]}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _compile(compiler, torch, built)
    return built


def _version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _compile(compiler: str, torch: Path, built: Path) -> None:
    unfinished = built.with_suffix(f".{os.getpid()}.tmp")
    includes = (f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include")
    libraries = (f"-L{torch}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib")
    try:
        subprocess.run(
            [compiler, *OPTIONS, *includes, str(SOURCE), "-o", str(unfinished), *libraries],
            check=True,
            capture_output=True,
            text=True,
        )
        unfinished.replace(built)
    finally:
        unfinished.unlink(missing_ok=True)
