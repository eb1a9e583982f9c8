"""Renews the page's libraries from npm: `make vendor`.

web/vendor/ has a file of each package, its license in LICENSES, and manifest.json with versions and
SHA-256 hashes, which a test compares. To upgrade, change a version here and run it.
"""

import hashlib
import pathlib
import subprocess
import tarfile
import tempfile

from qwen_jax.utils.files import write_bytes, write_json, write_text

FOLDER = pathlib.Path(__file__).with_name("web") / "vendor"
PACKAGES = {  # package of npm -> version, file in it, and its license's file
    "markdown-it": ("14.3.3", "dist/markdown-it.min.js", "LICENSE"),
    "dompurify": ("3.5.0", "dist/purify.min.js", "LICENSE"),
    "@highlightjs/cdn-assets": ("11.12.0", "highlight.min.js", "LICENSE"),
    "katex": ("0.16.47", "dist/katex.min.js", "LICENSE"),
}


def main() -> None:
    """Downloads the packages and writes the folder."""
    manifest, licenses = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for package, (version, file, license_file) in PACKAGES.items():
            packed = subprocess.run(
                ["npm", "pack", "--silent", f"{package}@{version}"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[-1]
            with tarfile.open(pathlib.Path(folder) / packed) as archive:
                content = _read(archive, file)
                licenses.append(
                    f"{package} {version}\n\n{_read(archive, license_file).decode().strip()}\n"
                )
            name = pathlib.PurePath(file).name
            write_bytes(FOLDER / name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[name] = {"package": package, "version": version, "sha256": digest}
    write_json(FOLDER / "manifest.json", manifest)
    write_text(FOLDER / "LICENSES", f"\n{'=' * 80}\n\n".join(licenses))


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    assert file is not None, name
    return file.read()


if __name__ == "__main__":
    main()
