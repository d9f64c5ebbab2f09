"""WMT's published files, in the place where sacrebleu looks for them.

sacrebleu knows address and MD5 of each archive. It would fetch one in a single breath and unpack
all of it unseen; here it is fetched like every other file, and one checked member is taken out.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError
from tell_plugins.preparation.checksums import Checksum
from tell_plugins.preparation.download import Places, fetch, locked

if TYPE_CHECKING:
    from sacrebleu.dataset.wmt_xml import WMTXMLDataset

MAX_MEMBER = 256 << 20  # bytes unpacked; WMT-21's files have 1 MB


def raw_file(
    test_set: str, pair: str, places: Places
) -> tuple[Path, WMTXMLDataset, dict[str, Any]]:
    """WMT's XML file of a sacrebleu data set and language pair, fetched when it is not there.

    Returns the file, sacrebleu's data set, and where the file came from. Raises MachineError when
    the archive cannot be had or is not the right one.
    """
    from sacrebleu.dataset import DATASETS

    dataset: Any = DATASETS[test_set]
    member = dataset.langpairs[pair][0]
    folder = Path(dataset._rawdir)
    target = folder / member
    url, md5 = dataset.data[0], dataset.md5[0]
    origin = {"sacrebleu": test_set, "pair": pair, "archive": url, "md5": md5, "member": member}
    if not target.is_file():
        archive = folder / dataset._get_tarball_filename(url)
        print(f"  fetching {url} (sacrebleu's {test_set}) ...", flush=True)
        fetch(url, Checksum("md5", md5), archive, places, name=url.rsplit("/", 1)[-1])
        take_member(archive, member, target)
    return target, dataset, origin


def take_member(archive: Path, member: str, target: Path) -> None:
    """Unpack one member of a tar archive to `target`, whatever names the archive holds.

    Raises MachineError when it is no archive, or the member is missing, no plain file or too big.
    """
    try:
        with tarfile.open(archive) as tar:
            entry = tar.getmember(member)
            source = tar.extractfile(entry) if entry.isfile() else None
            if source is None or entry.size > MAX_MEMBER:
                raise MachineError(
                    f"{archive}: '{member}' is no plain file of a sensible size",
                    remedy="it is another archive: fetch it again, or name the right one",
                )
            with locked(target), paths.atomic_path(target) as temporary:
                with temporary.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise MachineError(
            f"{archive}: '{member}' cannot be unpacked: {error}\n"
            "  remedy:  remove the archive, it is fetched again"
        ) from None
