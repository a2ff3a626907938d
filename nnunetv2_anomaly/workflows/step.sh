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
# Status 3, CasesFailedError: some cases failed and the rest is done. What follows goes on; the mark makes the last rule fail.
leave_cases_out() {
    local status=$?
    [[ $status -eq 3 ]] || exit "$status"
    mkdir -p failed && touch "failed/$1"
}
