"""A folder or a zip file, read alike: the names of its files with "/" between folders, and their bytes."""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import cached_property
from pathlib import Path, PurePosixPath

from dlrun.errors import DlrunError, Exit

_LARGEST_BYTES = 2 << 30  # of one member: more is taken for a bomb


class Folder:
    """A folder on disk. Hidden files and folders are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> frozenset[str]:
        """The files under the folder, at any depth."""
        found = []
        for where, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(where).relative_to(self.path)
            found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
        return frozenset(found)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DlrunError (Exit.DATA) if it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DlrunError(f"{name} cannot be read: {error.strerror or error}", code=Exit.DATA) from error


class Archive:
    """A zip file, read where it lies: nothing is unpacked.

    Raises: DlrunError (Exit.DATA) for what is no zip file, and for members that are encrypted, have a name that
    leads out of the archive, or are larger than 2 GiB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            with zipfile.ZipFile(path) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a zip file, or damaged"
            raise DlrunError(f"{path.name} cannot be read: {reason}", code=Exit.DATA) from error
        self._members = {member.filename: member for member in members if not _is_hidden(member.filename)}
        for member in self._members.values():
            if problem := _problem(member):
                raise DlrunError(f"{path.name}: '{member.filename}' {problem}", code=Exit.DATA)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}

    @property
    def names(self) -> frozenset[str]:
        """The files in the archive."""
        return frozenset(self._members)

    def checksum(self, name: str) -> tuple[int, int] | None:
        """Size and CRC of a file as the archive states them, or None if there is no such file."""
        member = self._members.get(name)
        return None if member is None else (member.file_size, member.CRC)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DlrunError (Exit.DATA) if it is not there or damaged."""
        if name not in self._members:
            raise DlrunError(f"{self.path.name} has no file {name}", code=Exit.DATA)
        # A process of its own opens the archive anew: forked ones would move each other's place in the file.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        try:
            return self._opened[1].read(name)
        except (zipfile.BadZipFile, NotImplementedError, zlib.error, OSError, EOFError) as error:
            raise DlrunError(f"{self.path.name}: {name} cannot be read: {error}", code=Exit.DATA) from error


def open_tree(path: str) -> Folder | Archive:
    """The folder or zip file a user named. Raises DlrunError that says what is there instead."""
    from dlrun.data._files import existing

    place = existing(path)
    if place.is_dir():
        return Folder(place)
    if place.suffix.lower() == ".zip":
        return Archive(place)
    raise DlrunError(f"data.path: {path} is neither a folder nor a zip file", f"use data.path={place.parent}")


def joined(folder: str, name: str) -> str:
    """A name in a folder; the folder "" is the top."""
    return f"{folder}/{name}" if folder else name


def parent(name: str) -> str:
    """The folder that a name is in; "" is the top."""
    folder = str(PurePosixPath(name).parent)
    return "" if folder == "." else folder


def leads_out(name: str) -> bool:
    """Whether a file's name is not one inside the folder: absolute, with a drive, or up through ".."."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or plain[1:2] == ":" or ".." in plain.split("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in name.split("/"))


def _problem(member: zipfile.ZipInfo) -> str:
    """Why a member is not to be read, or nothing."""
    if leads_out(member.filename):
        return "is a name that leads out of the archive"
    if member.flag_bits & 1:
        return "is encrypted"
    return "is larger than 2 GiB" if member.file_size > _LARGEST_BYTES else ""
