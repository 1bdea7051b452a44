#!/usr/bin/env bash
# A real single-node Slurm on this machine, for the slow tests: no accounting, private ports and state.
# Needs root, slurmctld, slurmd and munge (Debian: apt-get install slurm-wlm slurm-wlm-basic-plugins munge).
#   real_slurm.sh start DIR    then export SLURM_CONF=DIR/slurm.conf: sinfo, sbatch, scontrol requeue ... work
#   real_slurm.sh stop DIR
set -euo pipefail
dir=$(mkdir -p "$2" && cd "$2" && pwd)

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -f "$dir/$daemon.pid" ] && kill "$(cat "$dir/$daemon.pid")" 2>/dev/null || true
    done
}

if [ "$1" = stop ]; then
    stop
    exit
fi

host=$(hostname -s)
port=${FADEVIZ_SLURM_PORT:-16817}
mkdir -p "$dir/state" "$dir/spool"
# Jobs have 20 seconds between SIGTERM and SIGKILL (default 30); requeued ones wait 5 seconds (default 120).
cat > "$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
ReturnToService=2
KillWait=20
SlurmctldPort=$port
SlurmdPort=$((port + 1))
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
# Its own key, socket and munged: those of the machine are left alone.
dd if=/dev/urandom of="$dir/munge.key" bs=1024 count=1 2>/dev/null
chmod 400 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
slurmctld
slurmd
for _ in $(seq 60); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -qx idle; then
        exit 0
    fi
    sleep 0.5
done
echo "Slurm did not start: see $dir/*.log" >&2
tail -n 3 "$dir"/*.log >&2
stop
exit 1
