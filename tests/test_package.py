"""The package as one finds it: its modules and their order, its version, its public names; what importing it costs."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hold_jax

MODULES = [name for name in hold_jax.__all__ if name not in ("__version__", "load")]
# Modules and folders from the ground up: each imports only what stands before it.
ORDER = [
    "version", "errors", "command_line", "condition", "numerics", "operators", "runtime", "weights", "nn",
    "metrics", "data", "condition_encoder", "sde", "kernels", "noise_conditioning", "parameterization",
    "losses", "likelihood", "inverse", "guidance", "samplers", "langevin", "model", "autoguided", "training",
    "evaluation", "fid", "loops", "app", "convert", "pretrained", "__init__",
]  # fmt: skip


def imports(source):
    """The modules and folders of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "hold_jax":
            yield from (alias.name if alias.name in ORDER else "__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            parts = [(name or "").split(".") for name in names]
            yield from (part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "hold_jax")


def test_no_import_goes_up():
    root = Path(hold_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        assert room in ORDER, f"{room} has no place in ORDER"
        up = [name for name in imports(path.read_text()) if ORDER.index(name) > ORDER.index(room)]
        assert not up, f"{path.relative_to(root)} imports {up} from above"


def test_importing_the_package_imports_nothing_heavy():
    code = "import hold_jax, sys; print(sorted(m for m in ('jax', 'numpy', 'flax', 'optax') if m in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_modules_are_found_by_their_names():
    assert dir(hold_jax) == sorted(hold_jax.__all__)
    for name in MODULES:
        assert getattr(hold_jax, name) is importlib.import_module(f"hold_jax.{name}")
        assert f"`{name}`" in hold_jax.__doc__
    allowed = {"workdir", "checkpoint", "ema_length", "source", "config"}
    assert inspect.signature(hold_jax.load).parameters.keys() == allowed
    with pytest.raises(AttributeError, match="'hold_jax' has no attribute 'sdes'"):
        hold_jax.sdes  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_a_module_shows_its_public_names_alone(name):
    module = getattr(hold_jax, name)
    assert dir(module) == sorted(module.__all__)
    for public in module.__all__:
        assert not public.startswith("_")
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("hold_jax.") and value.__doc__, public
    # What is defined in the module and not private is in the list.
    for other, value in vars(module).items():
        defined = inspect.isclass(value) or inspect.isfunction(value)
        if defined and value.__module__ == module.__name__ and not other.startswith("_"):
            assert other in module.__all__, other


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert hold_jax.__version__ == project["version"]
    assert (Path(hold_jax.__file__).parent / "py.typed").exists()
