"""Compile the kernels once per machine. Writes only to <cache>/native; needs a C++ compiler, nothing of torch.

The file's name is the hash of all that shapes it (source, flags, compiler, instruction set), so a library built for
another machine, version or compiler is never loaded; it appears whole, by a rename.
"""

import os
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Final

SOURCES: Final = tuple(
    Path(__file__).with_name(name) for name in ("attention.cpp", "decoder.cpp", "draw.cpp", "kernels.cpp", "linear.cpp")
)
HEADERS: Final = tuple(
    Path(__file__).with_name(name)
    for name in ("attend_vectors.h", "attention.h", "grids.h", "pool.h", "team.h", "tiles.h", "vectors.h")
)
FLAGS: Final = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
TIMEOUT_S: Final = 300


class BuildFailed(Exception):
    """The kernels cannot be built here; the message says why in one sentence."""


def build(cache_dir: Path) -> Path:
    """The compiled library, built if it is not there yet (about 3 s). Raises BuildFailed."""
    compiler = find_compiler()
    target = cache_dir / "native" / f"kernels-{_key(compiler)}.so"
    if target.is_file():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / target.name
        _run([compiler, *FLAGS, *map(str, SOURCES), "-o", str(draft)])
        draft.replace(target)
    return target


def find_compiler() -> str:
    """$CXX, or the first of c++, g++, clang++. Raises BuildFailed."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildFailed("there is no C++ compiler (c++, g++ or clang++) on this machine")


def _key(compiler: str) -> str:
    """Hash of sources, flags, and the compiler's predefined macros: its version and the CPU's instruction set."""
    macros = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])
    sources = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    return sha256(b"\0".join([*sources, " ".join(FLAGS).encode(), macros])).hexdigest()[:24]


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BuildFailed(f"the compiler failed: {' '.join(last)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"the compiler could not run: {type(error).__name__}") from error
