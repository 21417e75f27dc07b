"""`headwater db`: the database's schema."""

import click

from storage import migrate

_url = click.option(
    "--database",
    metavar="URL",
    envvar="HEADWATER_DATABASE",
    required=True,
    show_envvar=True,
    help="sqlite:///PATH or postgresql://USER@HOST/NAME.",
)


@click.group()
def db() -> None:
    """Upgrade and check a database."""


@db.command()
@_url
def upgrade(database: str) -> None:
    """Bring a database to the schema version of this program; a new one is created."""
    click.echo(f"{database} is at schema version {migrate.upgrade(database)}")


@db.command()
@_url
def check(database: str) -> None:
    """Say whether a database has the schema version of this program."""
    click.echo(f"{database} is at schema version {migrate.check(database)}, as it should be")
