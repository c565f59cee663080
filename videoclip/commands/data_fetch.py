"""`videoclip data fetch`: what a publisher lets anybody have -> verified files in a folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from videoclip.checkpoints.downloads import download, sha256
from videoclip.commands.data_prepare import named
from videoclip.errors import VideoclipError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Downloads the annotation files of a data set that anybody may have, and verifies them.

    Stopped downloads go on where they were; a file gets its name when its SHA-256 is right. Most
    publishers want to be asked: then the page that tells how is printed.
    """

    name: tyro.conf.Positional[str]
    """The data set: videoclip data sets lists them."""
    output: Path
    """The folder for the files."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line and downloads what is not there yet."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip data fetch", description=Options.__doc__
    )
    data_set = named(options.name)
    print(f"{data_set.title}\nlicense: {data_set.license}\npage: {data_set.page}")
    for file in data_set.downloads:
        path = options.output / file.file
        if path.is_file() and (actual := sha256(path)) != file.checksum:
            raise VideoclipError(
                f"{path} is not what was published: its SHA-256 is {actual}, expected "
                f"{file.checksum}; delete it, and it is downloaded again"
            )
        print(f"{file.file}: {file.size:,} bytes from {file.address}")
        download(file.address, path, file.checksum, file.size)
    print(
        f"everything else of it ({data_set.files}) is to be had from its page, by its terms"
        if data_set.downloads
        else f"nothing of it may be fetched without asking; get {data_set.files} from its page"
    )
