#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice, each with the checkout in ~/jdeq:
#
#   experiments/launch/tpu_pod.sh TPU ZONE NAME WORKDIR [--field value ...]
#
# WORKDIR is a directory that all hosts share; see README.md. The same command again goes on from
# the last checkpoint.
set -euo pipefail
tpu=$1 zone=$2 name=$3 workdir=$4
shift 4
printf -v train '%q ' python -m experiments.train "$name" --workdir "$workdir" "$@"
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="cd ~/jdeq && export PATH=~/jdeq/.venv/bin:\$PATH && exec $train"
