#!/usr/bin/env bash
# Stands in for kubectl where there is no cluster: `kubectl exec … -- COMMAND…` runs COMMAND here, as it would in the
# container; everything else is written down in $DESK/kubectl.log for the test to look at.
set -eu
printf '%s\n' "$*" >>"$DESK/kubectl.log"
if [[ " $* " == *" exec "* ]]; then
    while [[ $1 != -- ]]; do shift; done
    shift
    exec "$@"
fi
