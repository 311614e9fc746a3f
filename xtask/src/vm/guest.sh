#!/bin/bash
# Runs in the guest as its first process: each job of /guest/jobs (LABEL SECONDS COMMAND..), and says on the
# console what became of it. A line of the kernel's log at level warning or worse fails the job that it came
# in.
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null >/dev/console 2>&1
cd /tmp || exit 1
say() { echo "@@ $*"; }

warnings() { dmesg --level=emerg,alert,crit,err,warn | grep -vEf /guest/harmless; }

# The last lines that a job wrote, marked so that they are not taken for ours.
tell() { tail -n 40 "$1" | cut -c1-500 | sed 's/^/@| /'; }

ip link set lo up
say up "$(uname -r)" "$(cut -d' ' -f1 /proc/uptime)"
while read -r label seconds command; do
    dmesg --clear
    begun=$(date +%s%N)
    timeout --kill-after=5 "$seconds" bash -c "$command" </dev/null >/tmp/output 2>&1
    status=$?
    took=$((($(date +%s%N) - begun) / 1000000))
    warnings >/tmp/warnings && { status=$((status ? status : 99)); sed -i 's/^/dmesg: /' /tmp/warnings; }
    cat /tmp/warnings >>/tmp/output
    [ "$status" = 0 ] || tell /tmp/output
    say job "$label" "$status" "$took"
done </guest/jobs
say end
echo o >/proc/sysrq-trigger
sleep 60
