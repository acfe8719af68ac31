"""How the kernels are compiled: one set of directives, and a switch for line tracing (`WARDLINE_TRACE=1`).

`CYTHON_USE_SYS_MONITORING=0` is needed beside the trace macro: from Python 3.12 Cython reports through `sys.monitoring`,
which the coverage plugin cannot read, and the kernels would vanish from the report without a word.
"""

import os
from typing import Any

from Cython.Build import cythonize
from setuptools.command.build_ext import build_ext as _build_ext

TRACE = os.environ.get("WARDLINE_TRACE", "") == "1"

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
    "linetrace": TRACE,
}


class build_ext(_build_ext):  # type: ignore[misc]
    """Compile every `ext/*.pyx` with the project's directives."""

    def finalize_options(self) -> None:
        """Cythonize before setuptools looks at the sources."""
        modules: list[Any] = self.distribution.ext_modules or []
        for module in modules:
            module.extra_compile_args = ["-O3", "-g0"] if not TRACE else ["-O0"]
            if TRACE:
                module.define_macros = [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
        self.distribution.ext_modules = cythonize(modules, compiler_directives=DIRECTIVES, force=TRACE)
        super().finalize_options()
