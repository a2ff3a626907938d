#!/bin/bash
# The workflow as Slurm job arrays, for sites without Snakemake: bash array.sh, in this folder. One array per file of
# array/, which begins when the one before has ended; a command whose work is done is skipped, and one whose files are
# missing ends at once. Run it again to resume. sbatch takes SBATCH_PARTITION and SBATCH_ACCOUNT from the environment.
set -euo pipefail
if [[ $# -eq 0 ]]; then
    after=()
    for list in array/*.txt; do
        read -r -a options <<< "$(sed -n '1s/^# //p' "$list")"
        job=$(sbatch --parsable --array="2-$(wc -l < "$list")" --output="logs/array_%A_%a.log" \
            "${options[@]}" "${after[@]}" array.sh "$list")
        after=(--dependency="afterany:$job")
        echo "$job: $list"
    done
else
    {%- for line in environment %}
    {{ line }}
    {%- endfor %}
    {{ prefix }}
    eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
fi
