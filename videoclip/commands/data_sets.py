"""`videoclip data sets`: which data sets can be prepared, from which files, under which license."""

import argparse
from collections.abc import Sequence

from data_prep.prepare import DATA_SETS


def main(arguments: Sequence[str]) -> None:
    """Prints every data set with what a user must know before he gets it."""
    parser = argparse.ArgumentParser(
        prog="videoclip data sets",
        description="Lists the data sets that can be prepared, with licenses and download pages.",
    )
    parser.parse_args(list(arguments))
    for data_set in DATA_SETS.values():
        print(f"{data_set.name}: {data_set.title}")
        print(f"  license  {data_set.license}")
        print(f"  page     {data_set.page}")
        print(f"  reads    {data_set.files}")
        for download in data_set.downloads:
            print(f"  fetches  {download.file} ({download.size:,} bytes) from {download.address}")
