"""Small disks that break while a program writes to them, and are repaired (Linux, as root).

with FullDisk(folder) as disk:
    ...  # a program writes to disk.folder
    disk.fail()  # again and again: another program takes what the first one frees
    disk.repair()
"""

import errno
import os
import pathlib
import subprocess
import time

_MIB = 32


def _call(*command: str | os.PathLike, codes: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def _unmount(folder: pathlib.Path) -> None:
    for _ in range(50):  # a process that just ended may still hold it
        if subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    _call("umount", folder)


class Folder:
    """A folder on a disk that does not fail.

    Attributes:
      failed: whether the disk is broken.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.failed = folder, False
        folder.mkdir()

    def fail(self) -> None:
        """Breaks the disk; call it again and again, because others write to it too."""

    def repair(self) -> None:
        """Makes the disk as good as before, without what was not written."""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


class FullDisk(Folder):
    """A file system in memory that another file fills to the last byte."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        _call("mount", "-t", "tmpfs", "-o", f"size={_MIB}m,mode=777", "tmpfs", folder)
        self._filler = folder / "filler"

    def fail(self) -> None:
        self.failed = True
        with open(self._filler, "ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def repair(self) -> None:
        self.failed = False
        self._filler.unlink(missing_ok=True)

    def __exit__(self, *_) -> None:
        _unmount(self.folder)


class ReadOnlyDisk(Folder):
    """An ext4 disk that becomes read-only under open files, as after an error of the device.

    Args:
      synced: whether everything written before reaches the disk. Otherwise it loses what was not
        synced, as in a power failure.
    """

    def __init__(self, folder: pathlib.Path, *, synced: bool = True):
        super().__init__(folder)
        self._synced = synced
        self._image = folder.with_name(f"{folder.name}.image")
        self._image.write_bytes(b"")
        os.truncate(self._image, _MIB << 20)
        _call("mkfs.ext4", "-q", self._image)
        self._mount()
        (folder / "lost+found").rmdir()

    def fail(self) -> None:
        if not self.failed:
            if self._synced:
                _call("sync", "-f", self.folder)
            # `remount,ro` is refused while files are open. This is what ext4 does after an error.
            _call("mount", "-o", "remount,abort", self.folder)
            self.failed = True

    def repair(self) -> None:
        self.failed = False
        _unmount(self.folder)
        _call("e2fsck", "-p", self._image, codes=(0, 1))
        self._mount()

    def _mount(self) -> None:
        _call("mount", "-o", "loop", self._image, self.folder)

    def __exit__(self, *_) -> None:
        _unmount(self.folder)
        self._image.unlink()
