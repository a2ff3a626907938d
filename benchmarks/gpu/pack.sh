#!/bin/bash
# A folder with all that a machine without a network needs for the measurements, but for torch, which has to suit its card:
#     benchmarks/gpu/pack.sh KIT        here, with the network
#     bash KIT/run.sh RESULTS           there, in an environment that has torch; again to resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
kit=$(realpath -m "$1")
mkdir -p "$kit/wheels"
python -m pip wheel --quiet --wheel-dir "$kit/wheels" ".[cluster]"
rm -f "$kit"/wheels/torch-* "$kit"/wheels/nvidia_* "$kit"/wheels/triton-*
cp -r benchmarks "$kit/"
cat > "$kit/run.sh" <<'RUN'
#!/bin/bash
set -euo pipefail
kit=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
results=$(realpath -m "$1")
python -m pip install --quiet --no-index --find-links "$kit/wheels" "nnunetv2-anomaly[cluster]"
cd "$kit" && python -m benchmarks.gpu --folder "$results" "${@:2}"
RUN
