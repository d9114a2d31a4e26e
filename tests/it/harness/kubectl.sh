#!/usr/bin/env bash
# Stands in for kubectl and helm where there is no cluster. `kubectl exec … -- COMMAND…` runs COMMAND here, as it would in the
# container. Everything is written down in $DESK/kubectl.log and $DESK/helm.log for the test to look at; `kubectl apply -f -` leaves
# its input in $DESK/applied.yaml, `kubectl logs` prints $DESK/pod.log, and what `kubectl get configmap …` prints is in
# $DESK/answer-get-configmap, and so on.
set -eu
name=${0##*/}
printf '%s\n' "$*" >>"$DESK/$name.log"
if [[ $name == kubectl && " $* " == *" exec "* ]]; then
    while [[ $1 != -- ]]; do shift; done
    shift
    exec "$@"
elif [[ $name == kubectl && "$*" == "apply -f -" ]]; then
    cat >"$DESK/applied.yaml"
elif [[ $name == kubectl && $1 == logs ]]; then
    cat "$DESK/pod.log"
elif [[ -e $DESK/answer-$1-$2 ]]; then
    cat "$DESK/answer-$1-$2"
fi
