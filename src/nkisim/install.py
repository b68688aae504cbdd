"""`import nki` as this simulator: `install()` and `uninstall()`.

The modules nki, nki.isa, nki.isa.constants, nki.language, nki.typing and nki.collectives are put
into `sys.modules`; kernels written for NKI then run unmodified.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from . import running
from .missing import refuse_name

_VERSION = "0.6.0"  # the NKI whose API this is

_installed: dict[str, ModuleType] = {}
_replaced: dict[str, ModuleType] = {}


class _OldCompiler(MetaPathFinder):
    """`import neuronxcc` within a kernel is an error since NKI 0.4 (release notes)."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "neuronxcc" and running.core is not None:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_filename.startswith("<frozen"):
                frame = frame.f_back  # the import system's own frames
            raise ImportError(
                f"{frame.f_code.co_filename}:{frame.f_lineno}: import {fullname}: neuronxcc"
                " cannot be imported inside a kernel; use import nki, nki.isa and nki.language at"
                " the top of the module"
            )


_old_compiler = _OldCompiler()


def install(force: bool = False) -> None:
    """Make `import nki` mean this simulator, until `uninstall`. Installing twice changes nothing.

    Raises ImportError if another nki can be imported, unless `force`.
    """
    if _installed:
        return
    if not force and (where := _another()):
        raise ImportError(
            f"nkisim.install: another nki is here ({where}); use install(force=True) to put the"
            " simulator in its place in this process"
        )
    for name in [name for name in sys.modules if name == "nki" or name.startswith("nki.")]:
        _replaced[name] = sys.modules.pop(name)
    _installed.update(_modules())
    sys.modules.update(_installed)
    sys.meta_path.insert(0, _old_compiler)


def uninstall() -> None:
    """Undo `install`; what it replaced is back."""
    if not _installed:
        return
    for name in _installed:
        sys.modules.pop(name, None)
    sys.modules.update(_replaced)
    _installed.clear()
    _replaced.clear()
    sys.meta_path.remove(_old_compiler)


def _another() -> str | None:
    """Where an nki that is not ours would come from."""
    if "nki" in sys.modules:
        return str(getattr(sys.modules["nki"], "__file__", "already imported"))
    spec = find_spec("nki")
    # A folder without an __init__.py, such as nki/ in a clone of AWS's documentation, is no
    # package.
    return None if spec is None else spec.origin


def _modules() -> dict[str, ModuleType]:
    """The modules by NKI's names."""
    from . import collectives, isa, language, typing
    from .kernel import Kernel, jit, simulate

    nki = ModuleType("nki", "NKI, simulated.")
    nki.__path__ = []  # a package to the import system
    nki.__spec__ = ModuleSpec("nki", None, origin="nkisim", is_package=True)
    for name, value in {
        "__version__": _VERSION, "Kernel": Kernel, "jit": jit, "simulate": simulate, "isa": isa,
        "language": language, "typing": typing, "collectives": collectives,
        "__getattr__": lambda name: refuse_name("nki", name),
    }.items():  # fmt: skip
        setattr(nki, name, value)
    return {
        "nki": nki,
        "nki.isa": isa,
        "nki.isa.constants": isa.constants,
        "nki.language": language,
        "nki.typing": typing,
        "nki.collectives": collectives,
    }
