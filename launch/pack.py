"""Packs what the hosts of a TPU pod run: this checkout, or the installed package."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tarfile

import qwen_jax

CONSTRAINTS = "launch/constraints/tpu.txt"
_MARKERS = ('extra == "tpu"', 'extra == "gcs"')


def requirements(installed: bool) -> str:
    """Returns what `uv pip install` gets on a host, in the folder of the archive."""
    if installed:
        return "-r requirements.txt -c qwen_jax/" + CONSTRAINTS
    return f"-c {CONSTRAINTS} --editable '.[tpu,gcs]'"


def pack(folder: pathlib.Path, archive: pathlib.Path, *, installed: bool) -> None:
    """Writes the archive: of the checkout in `folder`, or of the installed package."""
    if installed:
        pack_installed(archive)
    else:
        pack_checkout(folder, archive)


def pack_checkout(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """Writes the files of `folder` that git does not ignore to a .tgz; any name is possible.

    A symbolic link is packed as a link. One that leaves the folder is reported: it points nowhere
    on the pod. Exits if `folder` is not a git checkout.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=False,
    )
    if listed.returncode:
        sys.exit(
            "cannot list the files of this folder: see git's message above. Run the launcher in "
            "the root of a git checkout."
        )
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    root = folder.resolve()
    try:
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                path = folder / name
                if not os.path.lexists(path):  # deleted, but still in git's index
                    continue
                if path.is_symlink() and not path.resolve().is_relative_to(root):
                    print(f"{name} is a link to a file outside of this folder", file=sys.stderr)
                tar.add(path, arcname=name)
    except OSError as error:
        sys.exit(f"cannot pack the files of this folder: {error}.")


def pack_installed(archive: pathlib.Path) -> None:
    """Writes the installed package, and a file of what it requires with the extras `tpu`, `gcs`."""
    wanted = []
    for text in importlib.metadata.requires("qwen_jax") or []:
        requirement, _, marker = text.partition(";")
        if not marker or marker.strip().replace("'", '"') in _MARKERS:
            wanted.append(requirement.strip())
    package = pathlib.Path(qwen_jax.__file__).parent
    listed = archive.with_name("requirements.txt")
    listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")

    def without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in member.name else member

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(package, arcname="qwen_jax", filter=without_caches)
        tar.add(listed, arcname="requirements.txt")
