"""`headwater db`: the database's schema."""

import click

from storage import migrate
from storage.copying import copy_database
from storage.database import open_database, shown

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
    """Upgrade, check and copy a database."""


@db.command()
@_url
def upgrade(database: str) -> None:
    """Bring a database to the schema version of this program; a new one is created."""
    click.echo(f"{shown(database)} is at schema version {migrate.upgrade(database)}")


@db.command()
@_url
def check(database: str) -> None:
    """Say whether a database has the schema version of this program."""
    click.echo(f"{shown(database)} is at schema version {migrate.check(database)}, as it should be")


@db.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy all rows from one database URL to another, which is new or empty.

    Either is sqlite:///PATH or postgresql://USER@HOST/NAME: so a backup becomes a PostgreSQL
    database again, and a coordinator moves from one kind to the other. Stop it first.
    """
    with open_database(source) as database:
        count = copy_database(database, target)
    click.echo(f"{count} rows of {shown(source)} are in {shown(target)}")
