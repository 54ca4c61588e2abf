#!/usr/bin/env bash
# Ten minutes of a GPU: is it right, how fast is it, what does the stream cost, does it learn. JSON after each part, in order of worth.
#
#   bash benchmarks/gpu/carry.sh IMAGENETTE PHOTOGRAPHS    where a network is: wheels and images into benchmarks/gpu/carried
#   bash benchmarks/gpu.sh OUT                             on the GPU; docs/how-to/gpu.md says what it needs and what OUT holds
#   bash benchmarks/gpu.sh OUT --rehearse                  all of it in small on a CPU
set -uo pipefail
usage="usage: benchmarks/gpu.sh OUT [--rehearse] [--budget SECONDS] [--parts abcde] [--work FOLDER]"
case ${1:-} in
-h | --help) echo "$usage" && exit 0 ;;
"" | -*) echo "$usage" >&2 && exit 2 ;;
esac
out=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "error: there is no $python here; PYTHON=... names another" >&2
    exit 2
fi
if ! { mkdir -p "$out" && : >>"$out/transcript.txt"; } 2>/dev/null; then
    echo "error: $out cannot be written to; expected a folder, which is made if it is missing" >&2
    exit 2
fi
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Of the wheels that were carried, those that are missing here.
mapfile -t missing < <("$python" - "$root"/benchmarks/gpu/carried/wheels/*.whl <<'PYTHON'
import importlib.metadata, pathlib, sys
for wheel in map(pathlib.Path, sys.argv[1:]):
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        if wheel.exists():
            print(wheel)
PYTHON
)
if ((${#missing[@]})); then
    site=$(mktemp -d)
    for wheel in "${missing[@]}"; do  # a wheel is a zip file, where there is no pip
        { "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheel" ||
            "$python" -m zipfile -e "$wheel" "$site"; } 2>&1 | tee -a "$out/transcript.txt"
    done
    export PYTHONPATH="$PYTHONPATH:$site"
fi
exec "$python" "$root/benchmarks/gpu" "$out" "$@"
