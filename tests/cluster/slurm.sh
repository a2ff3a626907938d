#!/bin/bash
# A Slurm of one node on this machine, on the loopback alone, for the tests: slurm.sh start|stop|restart_node FOLDER.
# FOLDER gets its configuration, logs and processes' numbers; SLURM_CONF=FOLDER/slurm.conf makes Slurm's commands use it, and
# FOLDER/bin goes in front of PATH.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
folder=$(realpath -m "$2")
export SLURM_CONF="$folder/slurm.conf"

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

stop_one() {  # by its own number, and only if it is still what we started
    local number
    [[ -s "$folder/$1.pid" ]] || return 0
    number=$(< "$folder/$1.pid")
    [[ "$(cat "/proc/$number/comm" 2> /dev/null)" == "$1" ]] || return 0
    kill "$number"
    for _ in $(seq 100); do [[ -e "/proc/$number" ]] || return 0; sleep 0.1; done
    kill -KILL "$number"
}

start_node() { slurmd -N node -f "$SLURM_CONF" -L "$folder/slurmd.log"; }

case "$1" in
    start)
        mkdir -p "$folder"/{state,spool}
        chmod 700 "$folder"
        head -c 1024 /dev/urandom > "$folder/munge.key"
        chmod 600 "$folder/munge.key"
        cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=15
CredType=cred/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
KillWait=2
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0
RebootProgram=/bin/true
NodeName=node NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk "/MemTotal/ {print int(\$2 / 1100)}" /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
CONF
        # Snakemake's jobs drop SLURM_CONF before they call srun; a site has its configuration where Slurm looks for it.
        mkdir -p "$folder/bin"
        printf '#!/bin/bash\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$folder/bin/srun"
        chmod +x "$folder/bin/srun"
        munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
            --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
        slurmctld -f "$SLURM_CONF"
        start_node
        for _ in $(seq 300); do
            [[ "$(sinfo --noheader --format=%t 2> /dev/null)" == idle ]] && exit 0
            sleep 0.2
        done
        tail -n 5 "$folder"/slurm*.log >&2
        exit 1
        ;;
    restart_node)  # as a reboot: its jobs end, and it comes back
        stop_one slurmd
        for number in $(pgrep -f "^slurmstepd: \[.*\]" || true); do
            grep -zq "^SLURM_CONF=$SLURM_CONF$" "/proc/$number/environ" 2> /dev/null || continue
            pkill -KILL -P "$number" || true
            kill -KILL "$number" || true
        done
        start_node
        ;;
    stop)
        scancel --user "$(id -un)" 2> /dev/null || true
        for name in slurmd slurmctld munged; do stop_one "$name"; done
        ;;
    *)
        echo "slurm.sh: $1 is none of start, stop, restart_node" >&2
        exit 2
        ;;
esac
