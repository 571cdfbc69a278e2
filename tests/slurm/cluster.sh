#!/usr/bin/env bash
# A Slurm of one node, this machine, for the tests: `cluster.sh start DIR [PORT]` and `cluster.sh stop DIR`, as root.
# Its state, its logs and its slurm.conf lie in DIR; munge and Slurm come from Debian's packages, once.
set -euo pipefail
[ $# -ge 2 ] || { echo "expected: cluster.sh start|stop DIR [PORT]" >&2; exit 2; }
dir=$2 port=${3:-16817}

stop() {
    if [ -e "$dir/slurm.conf" ]; then
        export SLURM_CONF=$dir/slurm.conf
        scancel --user=root 2> /dev/null || true
        for _ in $(seq 100); do
            [ -n "$(squeue --noheader 2> /dev/null)" ] || break
            sleep 0.1
        done
    fi
    for daemon in slurmd slurmctld munged; do
        if pid=$(cat "$dir/$daemon.pid" 2> /dev/null); then
            kill "$pid" 2> /dev/null || true
            while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
        fi
    done
}

if [ "$1" = stop ]; then
    stop
    exit
fi
[ "$(id -u)" = 0 ] || { echo "Slurm's daemons need root here" >&2; exit 1; }
mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
if ! type slurmctld slurmd munged sbatch > /dev/null 2>&1; then
    command -v apt-get > /dev/null || { echo "there is no Slurm, and no apt-get to install it" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } > "$dir/apt.log" 2>&1 ||
        { echo "apt-get couldn't install slurm-wlm and munge: $(tail -n 1 "$dir/apt.log")" >&2; exit 1; }
fi
dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
chmod 600 "$dir/munge/key"
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
host=$(hostname -s)
cat > "$dir/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
# a requeued job waits until its credential has expired, by default two minutes
AuthInfo=socket=$dir/munge/socket,cred_expire=6
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=2
MaxArraySize=6
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
slurmctld -c -f "$SLURM_CONF"
slurmd -c -f "$SLURM_CONF"
for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ]; then
        exit
    fi
    sleep 0.1
done
echo "the node doesn't come up: $(tail -n 1 "$dir/slurmd.log")" >&2
stop
exit 1
