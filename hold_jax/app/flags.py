"""The config of a command line: a file, `--config=PATH`, and its changes, `--config.section.key=value`."""

import dataclasses
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from hold_jax.app import config
from hold_jax.app.config import KEYS
from hold_jax.errors import UserError
from hold_jax.runtime import schema

_PREFIX = "--config."
_MODULE = "hold_jax_experiment"  # the name that a config file is imported by


@dataclasses.dataclass(frozen=True)
class Given:
    """What a command line says of the config.

    Attributes:
      name: of the config file, without its ending; None where none is given.
      values: by `section.key`; all of the file's, and the flags'.
      flags: the keys that flags give.
    """

    name: str | None
    values: dict[str, Any]
    flags: frozenset[str] = frozenset()


def read(path: str | None, arguments: Sequence[str]) -> Given:
    """Reads a config file and flags.

    Args:
      path: of the file, `PATH.py` or `PATH.py:ARGUMENT` of its get_config; None: no file.
      arguments: `--config.section.key=value`, or `--config.section.key value`; a switch needs no value.

    Raises:
      UserError: in one line, for whatever is wrong with the file, a key or a value.
    """
    name, values = (None, {}) if path is None else _load(path)
    found = dict(_flags(arguments))
    return Given(name, values | found, frozenset(found))


def _flags(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        words, equals, value = rest.pop(0).partition("=")
        if not words.startswith(_PREFIX):
            raise UserError(f"unknown argument {schema.shown(words)}; flags are written --name=value")
        key = words.removeprefix(_PREFIX)
        schema.require_key(key, KEYS)
        if not equals and KEYS[key].kind is bool and (not rest or rest[0].startswith("--")):
            value = "True"
        elif not equals:
            if not rest:
                raise UserError(f"`{key}` has no value: write {_PREFIX}{key}=VALUE")
            value = rest.pop(0)
        found.append((key, KEYS[key].parse(key, value)))
    return found


def _load(path: str) -> tuple[str, dict[str, Any]]:
    """The stem of a config file and the values that it gives, by `section.key`."""
    if not schema.is_path(path) or not path:
        raise UserError(f"`config` is {schema.shown(path)}; it must be the path of a config file")
    text, colon, argument = path, "", ""
    if not Path(text).exists() and ":" in path:
        text, colon, argument = path.rpartition(":")
    file = Path(text).expanduser()
    if file.is_dir():
        raise UserError(f"--config={path} is a folder: give a file in it")
    if not file.is_file():
        raise UserError(f"--config={path}: no such file; configs/ holds the experiments")
    try:
        made = _import(file).get_config(*([argument] if colon else []))
        if not isinstance(made, ml_collections.ConfigDict):
            raise UserError(f"get_config() returns {schema.shown(made)}; it must return a ConfigDict")
        return file.stem, config.flat_values(made)
    except UserError as error:
        raise UserError(f"--config={path}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the file raises is a mistake in it
        raise UserError(f"--config={path}{_line_of(error, file)}: {type(error).__name__}: {error}") from None


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    if spec is None or spec.loader is None:
        raise UserError("it is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses and the like look their module up
    spec.loader.exec_module(module)
    if not inspect.isfunction(getattr(module, "get_config", None)):
        raise UserError("it has no function get_config()")
    return module


def _line_of(error: BaseException, file: Path) -> str:
    """ ", line N" of the file where the error arose; empty where that is not known."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno}"
    trace = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in trace if frame.f_code.co_filename == str(file)]
    return f", line {lines[-1]}" if lines else ""
