"""`videoclip data unpack`: an archive -> its files in a folder, and nothing outside of it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from data_prep.unpack import LARGEST, ArchiveError, unpack
from videoclip.errors import VideoclipError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Unpacks a .zip or .tar (also .gz, .bz2, .xz) that need not be trusted.

    Members that lead out of the folder, links, devices and archives that grow out of proportion are
    refused before anything is written. A stopped run goes on where it was.
    """

    archive: tyro.conf.Positional[Path]
    """The archive."""
    folder: tyro.conf.Positional[Path]
    """Where its files go."""
    largest: int = LARGEST
    """Bytes that it may unpack to."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line and unpacks."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip data unpack", description=Options.__doc__
    )
    try:
        files = unpack(options.archive, options.folder, largest=options.largest)
    except ArchiveError as error:
        raise VideoclipError(str(error)) from error
    size = sum(path.stat().st_size for path in files)
    print(f"{options.folder}: {len(files):,} files, {size:,} bytes")
