"""Job files: TOML in, a checked JobSpec out, and every mistake with its line."""

import re
import tomllib
from pathlib import Path

from coordinator.jobs.builder import build
from coordinator.jobs.job_spec import JobSpec
from coordinator.jobs.key_lines import key_lines, line_of
from headwater.errors import JobFileError


def parse_job(text: str, file_name: str) -> JobSpec:
    """The job that a TOML text describes.

    Raises:
        JobFileError: all that is wrong, a line each: `job.toml:12: [rounds] quorum = 9: at most
            the cohort (4)`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobFileError(_syntax_message(text, file_name, str(error))) from None
    except RecursionError:
        raise JobFileError(f"{file_name}: nested too deep") from None
    spec, faults = build(JobSpec, values)
    if spec is not None and not faults:
        return spec
    lines = key_lines(text)
    by_line = sorted((line_of(lines, fault.path), at) for at, fault in enumerate(faults))
    raise JobFileError(
        "\n".join(f"{file_name}:{line}: {faults[at].describe(values)}" for line, at in by_line)
    )


def read_job(path: Path) -> JobSpec:
    """The job in a file.

    Raises:
        JobFileError: the file cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError(f"{path}: {error.strerror or error}: name a job file") from error
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    return parse_job(text, path.name)


def _syntax_message(text: str, file_name: str, message: str) -> str:
    """`job.toml:3: not valid TOML: …` from the parser's `… (at line 3, column 5)`."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.S)
    if found is None:
        return f"{file_name}: not valid TOML: {message}"
    reason, line, column = found.groups()
    if line is None:
        return f"{file_name}:{text.count(chr(10)) + 1}: not valid TOML: {reason} (at the end)"
    return f"{file_name}:{line}: not valid TOML: {reason} (column {column})"
