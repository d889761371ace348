"""What the wheel installs: the command, the package, its types."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import autodist

COMMAND = Path(sysconfig.get_path("scripts")) / "autodist"


def test_the_package_is_the_installed_one() -> None:
    assert Path(autodist.__file__).is_relative_to(sysconfig.get_path("purelib"))
    assert (Path(autodist.__file__).parent / "py.typed").is_file()


def test_it_needs_no_other_package() -> None:
    needed = distribution("autodist").requires or []
    assert all("extra ==" in one for one in needed)
    code = "import sys, autodist; print(*sorted({n.split('.')[0] for n in sys.modules} - sys.stdlib_module_names))"
    shown = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    # What site-packages loads at the start may be there, too.
    assert not {"pandas", "numpy", "torch"} & set(shown.split())


def test_the_command_is_the_binary() -> None:
    shown = subprocess.run([COMMAND, "catalog"], check=True, capture_output=True, text=True, cwd="/").stdout
    assert "llama3-70b" in shown and "h100-80gb-sxm" in shown
    assert COMMAND.read_bytes()[:4] == b"\x7fELF"
    assert autodist.version().startswith(distribution("autodist").version)


def test_the_pytorch_engine_stays_a_package_of_its_own() -> None:
    """`pip install ./executor/torch` into the same environment overwrites nothing."""
    files = [Path(str(file)) for file in distribution("autodist").files or []]
    assert not any(file.parts[0] == "autodist_torch" for file in files)
