"""Runs notebooks with papermill and turns them into pages."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..console import news_in, tell
from ..errors import StageSkipped, StillmotionError
from ..pages import page
from .settings import Parameter, UsageError, parse_value


class NotebookError(StillmotionError):
    """A cell raised; the executed notebook holds the traceback.

    Attributes:
        reason: the exception's name and text, on one line.
        notebook: what was executed so far.
    """

    def __init__(self, reason: str, notebook: Path) -> None:
        super().__init__(reason)
        self.reason, self.notebook = reason, notebook


def parameters_of(notebook: Path) -> dict[str, object]:
    """Return names and default values in the cell tagged `parameters`."""
    import papermill

    if not notebook.is_file():
        raise StillmotionError(f"{notebook}: no such notebook")
    found = {}
    for name, about in papermill.inspect_notebook(_literal(notebook)).items():
        try:
            found[name] = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError):
            found[name] = None
    return found


def typed(given: Mapping[str, Parameter], notebooks: Sequence[Mapping[str, object]]) -> dict[str, Parameter]:
    """Read texts by the types of the notebooks' own values; what is no such value stays text, and is refused later.

    Args:
        given: by name; what is not text is left as it is.
        notebooks: parameters of each, as `parameters_of` gives them.
    """
    found = dict(given)
    for name, text in given.items():
        kinds = {type(known[name]) for known in notebooks if name in known}
        if not isinstance(text, str) or not kinds or str in kinds:
            continue
        # Where one notebook wants a whole number and another any, it has to be whole.
        kind = next((one for one in (bool, int, float) if one in kinds), None)
        try:
            found[name] = yaml.safe_load(text) if kind is None else parse_value(text, kind)
        except (ValueError, yaml.YAMLError):
            continue
    return found


def check_parameters(notebook: Path, given: Mapping[str, Parameter]) -> None:
    """Refuse parameters that a notebook does not have, or whose type is not that of the default.

    papermill itself only warns of the first and lets the second through.

    Raises:
        UsageError: names the parameter and what there is instead.
    """
    known = parameters_of(notebook)
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                f"parameter {name}: {notebook.stem} has no such parameter; it has {', '.join(sorted(known))}"
            )
        default = known[name]
        whole_for_float = isinstance(default, float) and type(value) is int
        if default is not None and value is not None and type(value) is not type(default) and not whole_for_float:
            raise UsageError(
                f"parameter {name}: {value!r} is {type(value).__name__}; "
                f"{notebook.stem} wants {type(default).__name__}, such as {default!r}"
            )


class _News(io.StringIO):
    """A file that papermill writes a notebook's output to; it passes on what `console.news` wrote."""

    def __init__(self, on_news: Callable[[str], None]) -> None:
        super().__init__()
        self._on_news = on_news

    def write(self, text: str) -> int:
        for line in news_in(text):
            self._on_news(line)
        return len(text)


def _headings(notebook: Path) -> dict[str, str]:
    """Return the words of each heading by the id of the first code cell below it."""
    found: dict[str, str] = {}
    heading = ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            lines = [line for line in "".join(cell["source"]).splitlines() if line.startswith("## ")]
            heading = lines[-1].removeprefix("## ") if lines else heading
        elif heading:
            found[cell.get("id", "")] = heading
            heading = ""
    return found


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Parameter], on_news: Callable[[str], None] = tell
) -> None:
    """Run a notebook in a kernel of this Python; the output is written after each cell.

    Args:
        on_news: called with each heading that is reached, and with what cells say by `console.news`.

    Raises:
        NotebookError: a cell raised, or the kernel died.
        OSError: the output cannot be written.
        KeyboardInterrupt: the kernel was ended for it.
    """
    kernel, failures = _Kernel(output.with_suffix(".log")), []

    def work() -> None:
        try:
            _execute(notebook, output, parameters, kernel, on_news)
        except BaseException as error:  # noqa: BLE001  # it is raised again where somebody waits for it
            failures.append(error)

    # An interrupt arrives in the main thread. There it would break off jupyter's own code in the middle, which
    # then ends in errors of its own. A thread does the work, and an interrupt ends the kernel under it.
    worker = threading.Thread(target=work, name=f"notebook {notebook.stem}", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(1.0)
    except KeyboardInterrupt:
        kernel.kill()
        worker.join(_PATIENCE_S)
        raise
    finally:
        kernel.forget_log()
    for error in failures:
        raise error


_PATIENCE_S = 60.0
"""Longest wait for jupyter to see that a killed kernel is gone; it looks once a second."""


class _Kernel:
    """The process that runs a notebook's cells, and the file that it writes its own last words to."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: Any = None
        self._killed = threading.Event()

    def kill(self) -> None:
        """End it, also if it has not started yet."""
        self._killed.set()
        if self._process is not None:
            self._process.kill()

    def manager(self) -> type:
        """Class of jupyter's kernel managers that starts this one."""
        from jupyter_client.manager import AsyncKernelManager

        kernel = self

        class KernelManager(AsyncKernelManager):
            # jupyter_client declares it as a plain function, which papermill's client knows not to believe.
            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                with kernel.log.open("wb") as output:  # the kernel has its own copy once it runs
                    await super().start_kernel(**options, stdout=output, stderr=output)
                kernel._process = getattr(self.provisioner, "process", None)
                if kernel._killed.is_set():
                    kernel.kill()

        return KernelManager

    def end(self) -> str:
        """Return what ended it, in words, where the system tells."""
        status = None if self._process is None else self._process.poll()
        if status is None or status >= 0:
            return "" if status is None else f"exit status {status}; "
        return f"signal {signal.Signals(-status).name}; "

    def forget_log(self) -> None:
        if self.log.is_file() and not self.log.stat().st_size:
            self.log.unlink()


def _execute(
    notebook: Path, output: Path, parameters: Mapping[str, Parameter], kernel: _Kernel, on_news: Callable[[str], None]
) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    _prefer_own_kernel()
    headings = _headings(notebook)

    def on_cell_start(cell: Mapping[str, Any], **_: Any) -> None:
        if heading := headings.get(cell.get("id", "")):
            on_news(heading)

    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(output),
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            stdout_file=_News(on_news),
            on_cell_start=on_cell_start,
            start_timeout=180,
            # ipykernel 7.4 warns of an unencrypted connection, which never leaves this machine.
            extra_arguments=["--IPKernelApp.log_level=40"],
            kernel_manager_class=kernel.manager(),
        )
        # Of a kernel that did its work the words are of no use: jupyter's own way to end one can make it complain.
        kernel.log.unlink(missing_ok=True)
    except PapermillExecutionError as error:
        text = " ".join(str(error.evalue).split())
        if error.ename == StageSkipped.__name__:
            raise StageSkipped(text) from error
        raise NotebookError(f"cell {error.exec_count}: {error.ename}: {text}", output) from error
    except DeadKernelError as error:
        said = last_line(kernel.log) or "it said nothing; on a machine with little memory that is the usual reason"
        raise NotebookError(f"its kernel died ({kernel.end()}{said})", output) from error


def _literal(path: Path) -> str:
    """Return a path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def last_line(log: Path) -> str:
    """Return the last line that a process wrote to its log, or an empty text."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _prefer_own_kernel() -> None:
    """Put the kernel specs of this environment first: one of another Python may go by the same name."""
    own = str(Path(sys.prefix) / "share" / "jupyter")
    paths = os.environ.get("JUPYTER_PATH", "").split(os.pathsep)
    if paths[0] != own:
        os.environ["JUPYTER_PATH"] = os.pathsep.join([own, *(path for path in paths if path)])


def to_page(notebook: Path, path: Path) -> None:
    """Write an executed notebook as one HTML file without its code and without anything from outside."""
    from nbconvert import HTMLExporter

    # The other templates of nbconvert load scripts from a content network.
    exporter = HTMLExporter(template_name="basic", exclude_input=True)
    body, _ = exporter.from_filename(str(notebook))
    path.write_text(page("notebook.html.j2", title=notebook.stem, body=body), encoding="utf-8")
