#!/bin/bash
# The workflow as Slurm job arrays, for sites without Snakemake: bash array.sh, in this folder. One array per file of
# array/, which begins when the one before has ended well; a command whose work is done is skipped. Run it again to resume.
set -euo pipefail
if [[ $# -eq 0 ]]; then
    after=()
    for list in array/*.txt; do
        read -r -a options <<< "$(sed -n '1s/^# //p' "$list")"
        job=$(sbatch --parsable --array="2-$(wc -l < "$list")" --output="logs/array_%A_%a.log" \
            "${options[@]}" "${after[@]}" array.sh "$list")
        after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
        echo "$job: $list"
    done
else
    {%- for line in environment %}
    {{ line }}
    {%- endfor %}
    eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"
fi
