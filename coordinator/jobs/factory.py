"""The author's own code: what `module:name` in a job file stands for.

Modules are looked for in the job file's folder first, then among the installed ones. Those of the
folder are loaded into a package of their own, so that two jobs may both have a `model.py`; they may
import their siblings (`import layers` or `from . import layers`). Nothing of it stays behind:
`sys.path` and `sys.modules` are put back on exit.
"""

import difflib
import importlib
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from headwater.errors import CompileError, require

_numbers = itertools.count()


class JobCode:
    """The code beside one job file, loaded within a `with` block.

    Use what it returns within the block, since functions may import siblings when they are called.
    It changes the interpreter's import state for that time: one block at a time in a process. A
    folder that is on `sys.path` anyway keeps its modules: there they are ordinary ones.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._package = f"headwater_job_{next(_numbers)}"
        self._hidden: dict[str, ModuleType] = {}
        self._wrote_bytecode = True
        self._is_on_path = False

    def __enter__(self) -> "JobCode":
        package = ModuleType(self._package)
        package.__path__ = [str(self._folder)]
        sys.modules[self._package] = package
        self._is_on_path = any(Path(one).resolve() == self._folder for one in sys.path)
        if not self._is_on_path:
            self._hidden = {
                name: module for name, module in sys.modules.items() if self._is_shadowed(name)
            }
            for name in self._hidden:
                del sys.modules[name]
            sys.path.insert(0, str(self._folder))
        # Source edited twice within a second would otherwise meet its own stale bytecode.
        self._wrote_bytecode, sys.dont_write_bytecode = not sys.dont_write_bytecode, True
        importlib.invalidate_caches()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.dont_write_bytecode = not self._wrote_bytecode
        if not self._is_on_path and str(self._folder) in sys.path:
            sys.path.remove(str(self._folder))
            sys.path_importer_cache.pop(str(self._folder), None)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == self._package or self._is_sibling(module):
                del sys.modules[name]
        sys.modules.update(self._hidden)

    def model(self, reference: str) -> Any:
        """Call the factory `module:name` and return its `torch.nn.Module`.

        Raises:
            CompileError: it cannot be loaded, needs arguments, raises or returns something else.
        """
        where = f'factory "{reference}"'
        factory = self._load(reference, where)
        module_class = require("torch", extra="author", purpose="compile a model").nn.Module
        if isinstance(factory, module_class):
            raise CompileError(
                f"{where} is a module already: name a class or a function that returns a new one"
            )
        self._check_call(factory, where)
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise CompileError(f"{where} raised {self._told(error)}") from error
        if not isinstance(model, module_class):
            raise CompileError(f"{where} returned {_kind(model)}, not a torch.nn.Module")
        return model

    def function(self, reference: str, role: str) -> str | Callable[..., Any]:
        """A loss or metric: the function behind `module:name`; a plain name is returned as it is.

        Raises:
            CompileError: it cannot be loaded or called.
        """
        if ":" not in reference:
            return reference
        found = self._load(reference, f'{role} "{reference}"')
        if not callable(found):
            raise CompileError(f'{role} "{reference}" is {_kind(found)}, not a function')
        return found  # type: ignore[no-any-return]

    def _load(self, reference: str, where: str) -> Any:
        module_name, _, name = reference.partition(":")
        module = self._import(module_name, where)
        try:
            return getattr(module, name)
        except AttributeError:
            public = [one for one in vars(module) if not one.startswith("_")]
            near = difflib.get_close_matches(name, public, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            place = self._place(getattr(module, "__file__", None) or module_name)
            raise CompileError(f'{where}: {place} has no "{name}"{hint}') from None

    def _import(self, name: str, where: str) -> ModuleType:
        top = name.partition(".")[0]
        is_local = (self._folder / f"{top}.py").is_file() or (self._folder / top).is_dir()
        full_name = f"{self._package}.{name}" if is_local else name
        try:
            return importlib.import_module(full_name)
        except ModuleNotFoundError as error:
            if error.name and (full_name == error.name or full_name.startswith(f"{error.name}.")):
                raise CompileError(
                    f"{where}: there is no {name.replace('.', '/')}.py in {self._folder} and no "
                    f'installed module "{name}"'
                ) from None
            raise CompileError(f"{where} cannot be loaded: {self._told(error)}") from error
        except (Exception, SystemExit) as error:
            raise CompileError(f"{where} cannot be loaded: {self._told(error)}") from error

    def _check_call(self, factory: Any, where: str) -> None:
        if not callable(factory):
            raise CompileError(
                f"{where} is {_kind(factory)}, not a class or function that returns a module"
            )
        try:
            parameters = inspect.signature(factory).parameters.values()
        except (TypeError, ValueError):
            return
        needed = [
            one.name
            for one in parameters
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
        if needed:
            raise CompileError(
                f"{where} needs arguments ({', '.join(needed)}): give them defaults, or write a "
                "function without arguments that returns the module"
            )

    def _told(self, error: BaseException) -> str:
        """`ValueError: bad width (model.py:12)`: the last line of the author's own code."""
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{self._place(error.filename)}:{error.lineno}"
            return f"{type(error).__name__}: {error.msg} ({place})"
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        own = [one for one in frames if self._is_inside(one.filename)]
        return f"{text} ({self._place(own[-1].filename)}:{own[-1].lineno})" if own else text

    def _place(self, file: str) -> str:
        return str(Path(file).relative_to(self._folder)) if self._is_inside(file) else file

    def _is_inside(self, file: str | None) -> bool:
        """Whether a file is of the folder, and not of an environment installed within it."""
        if not file or "site-packages" in Path(file).parts:
            return False
        return Path(file).is_relative_to(self._folder)

    def _is_sibling(self, module: ModuleType) -> bool:
        """Whether a module was found only because the folder was on the path."""
        return not self._is_on_path and self._is_inside(getattr(module, "__file__", None))

    def _is_shadowed(self, name: str) -> bool:
        """Whether the folder has a file for the name of a module that is imported already."""
        top = name.partition(".")[0]
        return top not in sys.stdlib_module_names and (self._folder / f"{top}.py").is_file()


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
