#!/usr/bin/env bash
# Build the kaldifeat wheel against the torch of an environment, without a CUDA toolkit and without downloading sources.
#
#   tools/kaldifeat/build.sh PYTHON FOLDER
#
# PYTHON   the environment's python, with torch, cmake and pybind11 installed
# FOLDER   output folder of the wheel
set -euo pipefail

python=$1
wheels=$2
here=$(cd "$(dirname "$0")" && pwd)

command -v "${CXX:-c++}" >/dev/null || {
  echo "error: no C++ compiler found, and kaldifeat is built from source; install one (apt install g++) or set CXX" >&2
  exit 1
}

building=$(mktemp -d)
# The build scripts split paths at spaces, which the folder of the checkout may have.
ln -s "$here" "$building/recipe"
ln -s "$(cd "$(dirname "$python")/.." && pwd)" "$building/env"
here=$building/recipe
python=$building/env/bin/$(basename "$python")

torch_dir=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
cxx11_abi=$("$python" -c 'import torch; print(int(torch.compiled_with_cxx11_abi()))')
# The headers of torch >= 2.1 need C++17; kaldifeat selects C++14.
cxx_standard=$("$python" -c 'import torch; print("-DCMAKE_CXX_STANDARD=17" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1) else "")')

echo "Building kaldifeat (about 3 minutes, once; the wheel is stored in $wheels)"
export PATH="$(dirname "$python"):$PATH"
export KALDIFEAT_MAKE_ARGS="-j$(nproc)"
export KALDIFEAT_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -Dkaldifeat_BUILD_TESTS=OFF -DCMAKE_FIND_PACKAGE_TARGETS_GLOBAL=ON \
  -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$here/pybind11 -Dpybind11_DIR=$("$python" -m pybind11 --cmakedir) \
  -DTorch_DIR=$here/torch -DTORCH_DIR=$torch_dir -DTORCH_CXX11_ABI=$cxx11_abi $cxx_standard"
"$python" -m pip --disable-pip-version-check wheel --no-deps --no-build-isolation --require-hashes \
  --requirement "$here/requirements.txt" --wheel-dir "$building" >"$building/build.log" 2>&1 || {
  tail -n 40 "$building/build.log" >&2
  echo "error: the build of kaldifeat failed; the end of its log is above, all of it in $building/build.log" >&2
  exit 1
}
mkdir -p "$wheels"
mv "$building"/kaldifeat-*.whl "$wheels/"
rm -rf "$building"
