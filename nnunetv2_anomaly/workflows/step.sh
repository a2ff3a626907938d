# Read by bash before the command of every step (Snakefile).
# A step that outlives its run keeps this lock, so that the next run does not start it a second time.
if command -v flock > /dev/null && exec 9>> .snakemake/steps.lock; then flock -s 9; fi
# Several GPUs and no scheduler that deals them out, as the step is no job of its own: it takes one that no other step holds.
if [[ -n "${NNUNETV2_ANOMALY_GPUS:-}" && "${SLURM_JOB_ID:-}" == "${NNUNETV2_ANOMALY_JOB:-}" && "$BASH_EXECUTION_STRING" == *"-device cuda"* ]]; then
    for gpu in ${NNUNETV2_ANOMALY_GPUS//,/ }; do
        exec 8>> ".snakemake/gpu_$gpu.lock"
        if flock -n 8; then export CUDA_VISIBLE_DEVICES=$gpu; break; fi
    done
fi
# Right after a step's command: NAME, and MARK where it makes no file of its own. Status 3, CasesFailedError: some cases
# failed and the rest is done, so that what follows goes on; failed/NAME makes the last rule fail. A mark holds the time, as
# Snakemake takes files of the same content for the same. No trap at the end: a signal would start it, with status 0.
finish() {
    local status=$?
    [[ $status -eq 0 || $status -eq 3 ]] || exit "$status"
    if [[ $status -eq 3 ]]; then mkdir -p failed && touch "failed/$1"; fi
    if [[ -n "${2:-}" ]]; then date +%s.%N > "$2"; fi
    exit
}
