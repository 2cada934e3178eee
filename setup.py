"""Builds the compiled part, inplace_abn._core. Everything else about the project is in pyproject.toml.

Read from the environment: CC; INPLACE_ABN_WERROR=1 (warnings are errors), INPLACE_ABN_OPENMP=0 (one thread
only), INPLACE_ABN_ISAS="v3 baseline" (the instruction sets to build; default: all that compile here),
INPLACE_ABN_CFLAGS (appended for the compiler and the linker: sanitizers, debugging), INPLACE_ABN_CORE_CFLAGS
(the same, but not for the kernels, which can take too long to compile with them).
"""

import hashlib
import os
import platform
import re
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, SetupError

KERNELS, ACTIVATION_KERNELS = "csrc/kernels/kernels.c", "csrc/kernels/activation_kernels.c"
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
CPU_HEADERS = [name for name in HEADERS if "cuda" not in name]  # all that the kernels for CPUs may include
GPU_PRELUDE, GPU_KERNELS = Path("csrc/cuda/standard.h"), Path("csrc/cuda/kernels.cu")

# Instruction sets: machines that may have them, flags for gcc and clang, flags for MSVC. The kernels are
# compiled for each set whose csrc/probes/<name>.c compiles here; csrc/dispatch.c chooses one at run time.
X86, ARM, ANY = ("x86_64", "amd64"), ("arm64", "aarch64"), ("",)
INSTRUCTION_SETS = {
    "v4": (X86, "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx2 -mfma -mf16c", "/arch:AVX512"),
    "v3": (X86, "-mavx2 -mfma -mf16c", "/arch:AVX2"),
    "v2": (X86, "-msse4.2", ""),
    "neon": (ARM, "", ""),
    "baseline": (ANY, "", ""),
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
REALS = ("float32", "float64")  # the half types are computed in float32

# OpenMP: compiler flags, linker flags. Apple's clang needs a separately installed libomp.
OPENMP = [("/openmp", "")] if os.name == "nt" else [("-fopenmp", "-fopenmp")]
if sys.platform == "darwin":
    for prefix in (sys.prefix, "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
        OPENMP.append((f"-Xpreprocessor -fopenmp -I{prefix}/include", f"-L{prefix}/lib -lomp"))
    # Build for one architecture only, even under a universal Python: a probe tests only one.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


class BuildCore(build_ext):
    """build_ext that compiles the kernels per instruction set and dtype, the rest once, in parallel."""

    def run(self):
        super().run()
        if not self.inplace:
            # After `pip install .`, Python started in the checkout still imports the checkout's package,
            # which needs the extension too.
            self.copy_extensions_to_source()

    def build_extension(self, ext):
        core, kernels, link = self.common_flags()
        openmp, openmp_link = self.openmp_flags()
        wanted = self.instruction_sets()
        built = [name for name in INSTRUCTION_SETS if name in wanted and self.has_instruction_set(name)]
        macros = [(f"ABN_WITH_{name.upper()}", "1") for name in built]
        macros += [("ABN_VERSION", f'"{self.distribution.get_version()}"')]

        jobs = [
            (source, self.names(ABN_ISA=name, ABN_DTYPE=dtype), kernels + self.isa_flags(name))
            for source, dtypes in ((KERNELS, DTYPES), (ACTIVATION_KERNELS, REALS))
            for name in built
            for dtype in dtypes
        ] + [(source, macros, core + openmp) for source in [*ext.sources, self.gpu_source()]]
        with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
            ext.extra_objects = list(pool.map(self.compile_one, *zip(*jobs, strict=True)))

        ext.sources, ext.extra_link_args = [], link + openmp_link
        # Always link: file times do not show changed flags, nor sources that went back to an earlier state.
        self.force = self.compiler.force = True
        super().build_extension(ext)

    @property
    def msvc(self):
        return self.compiler.compiler_type == "msvc"

    @staticmethod
    def names(**choices):
        """Return two macros for ABN_ISA="v3": ABN_ISA=v3, for token pasting, and ABN_ISA_V3=1, for #if."""
        return [
            pair for key, name in choices.items() for pair in ((key, name), (f"{key}_{name.upper()}", "1"))
        ]

    def common_flags(self):
        """Return the flags for the core, for the kernels and for the linker."""
        if self.msvc:
            return ["/O2", "/std:c11"], ["/O2", "/std:c11"], []
        common = ["-O3", "-g0", "-std=c11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
        if os.environ.get("INPLACE_ABN_WERROR", "0") != "0":
            # A thread's stack may be as small as 128 KB.
            common += ["-Wall", "-Wextra", "-Werror", "-Wframe-larger-than=32768"]
        extra = shlex.split(os.environ.get("INPLACE_ABN_CFLAGS", ""))
        of_core = shlex.split(os.environ.get("INPLACE_ABN_CORE_CFLAGS", ""))
        core = [*common, "-ffp-contract=off", *extra, *of_core]
        libraries = ["-lm", "-ldl"] if sys.platform == "linux" else ["-lm"]
        return core, [*common, "-ffp-contract=fast", *extra], [*extra, *of_core, *libraries]

    def isa_flags(self, name):
        _, unix, msvc = INSTRUCTION_SETS[name]
        return (msvc if self.msvc else unix).split()

    def gpu_source(self):
        """Write the kernels for GPUs as an array of lines in C, for csrc/cuda/driver.c; return its path."""
        lines = [line for path in (GPU_PRELUDE, GPU_KERNELS) for line in included_lines(path, set())]
        quoted = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
        text = "\n".join(
            [
                "#include <stddef.h>",
                "extern const char *const abn_cuda_source[];",
                "const char *const abn_cuda_source[] = {",
                *(f'"{line}\\n",' for line in quoted),
                "NULL};\n",
            ]
        )
        target = Path(self.build_temp, "cuda_source.c")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
        return str(target)

    @staticmethod
    def instruction_sets():
        """Return the names of the sets to build; always with baseline, which every processor can run."""
        wanted = os.environ.get("INPLACE_ABN_ISAS", "").split() or list(INSTRUCTION_SETS)
        for name in wanted:
            if name not in INSTRUCTION_SETS:
                raise SetupError(f"INPLACE_ABN_ISAS: {name!r} is not one of {', '.join(INSTRUCTION_SETS)}")
        return [*wanted, "baseline"]

    def has_instruction_set(self, name):
        target = self.plat_name + os.environ.get("ARCHFLAGS", "")
        found = any(machine in target for machine in INSTRUCTION_SETS[name][0])
        found = found and (name == "baseline" or self.probe(name, self.isa_flags(name)))
        print(f"inplace_abn: {name} kernels {'built' if found else 'left out'}", flush=True)
        return found

    def openmp_flags(self):
        """Return the flags for the compiler and for the linker, both empty where there is no OpenMP."""
        found = [], []
        if os.environ.get("INPLACE_ABN_OPENMP", "1") != "0":
            tries = ((flags.split(), link.split()) for flags, link in OPENMP)
            found = next((pair for pair in tries if self.probe("openmp", *pair)), found)
        print(f"inplace_abn: OpenMP {' '.join(found[0]) or 'left out: one thread'}", flush=True)
        return found

    def probe(self, name, flags, link=None):
        """Return whether csrc/probes/<name>.c compiles with these flags and, given `link`, links."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                objects = self.compiler.compile([f"csrc/probes/{name}.c"], folder, extra_postargs=flags)
                if link is not None:
                    self.compiler.link_executable(objects, "probe", folder, extra_postargs=link)
            except (CompileError, LinkError):
                return False
            return True

    def compile_one(self, source, macros, flags):
        """Compile, unless an object of the same sources and command exists; return the object's path."""
        headers = CPU_HEADERS if source in (KERNELS, ACTIVATION_KERNELS) else HEADERS
        texts = b"".join(Path(name).read_bytes() for name in (source, *headers))
        command = repr((getattr(self.compiler, "compiler_so", ""), macros, flags, np.__version__)).encode()
        folder = str(Path(self.build_temp, hashlib.sha256(texts + command).hexdigest()[:12]))
        target = self.compiler.object_filenames([source], output_dir=folder)[0]
        if self.force or not Path(target).exists():
            self.compiler.compile([source], folder, macros, ["csrc", np.get_include()], extra_postargs=flags)
        return target


def included_lines(path, seen):
    """Yield the lines of a source and of the files of csrc/ that it includes, each file once."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    for line in path.read_text().splitlines():
        include = re.match(r'\s*#include ([<"])(.+)[>"]', line)
        if not include:
            yield line
        elif include[1] == '"':
            yield from included_lines(path.parent / include[2], seen)


sources = sorted(glob("csrc/*.c") + glob("csrc/cuda/*.c") + glob("csrc/python/*.c"))
core = Extension("inplace_abn._core", sources, depends=HEADERS)
setup(ext_modules=[core], cmdclass={"build_ext": BuildCore})
