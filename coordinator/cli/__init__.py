"""The `headwater` command, for operators and authors.

Exit codes: 0 done; 1 a defect of ours, or a check that found something wrong; 2 your mistake (an
option, a job file, a name); 3 the world (no coordinator answers, the database is held, the disk is
full), where trying again can help; 130 interrupted.
"""

import sys

import click

from coordinator import VERSION
from coordinator.cli.commands import headwater
from headwater.errors import HeadwaterError


def main() -> None:
    """Run the command, and turn errors into one line and an exit code."""
    sys.exit(run(headwater))


def run(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command with these arguments (default: the process's); its exit code."""
    try:
        # Without standalone mode click returns the code of its Exit, and what a command returns.
        code = command.main(args=arguments, standalone_mode=False, prog_name="headwater")
    except HeadwaterError as error:
        click.echo(f"headwater: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # a reader such as head has seen enough
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0


__all__ = ["VERSION", "main", "run"]
