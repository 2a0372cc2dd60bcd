#!/usr/bin/env bash
# Removes dlp-serve from a cluster, in the order that works:
#
#   k8s/uninstall.sh [--namespace dlp] [--yes]
#
# First the RayServices: KubeRay lets their requests end (310 s at most) and clears Redis by a Job. Only then the namespace.
# `kubectl delete namespace` alone deletes Redis and the rights to start Jobs at the same moment, and hangs until KubeRay
# gives the Job up. The bucket, KubeRay's operator and k8s/monitoring stay.
#
# Exit codes: 0 removed or not there, 1 something did not end in time, 2 bad usage or no cluster.
set -euo pipefail

namespace=dlp
yes=false
usage() {
  echo "usage: k8s/uninstall.sh [--namespace NAME] [--yes]" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --namespace)
      [ $# -gt 1 ] || usage
      namespace=$2
      shift 2
      ;;
    --yes)
      yes=true
      shift
      ;;
    *) usage ;;
  esac
done

command -v kubectl >/dev/null || { echo "kubectl is missing: install it (https://kubernetes.io/docs/tasks/tools/)" >&2; exit 2; }
if ! context=$(kubectl config current-context 2>/dev/null) || ! kubectl version >/dev/null 2>&1; then
  echo "no cluster answers: choose one with kubectl config use-context NAME" >&2
  exit 2
fi
if [ -z "$(kubectl get namespace "$namespace" --ignore-not-found -o name)" ]; then
  echo "$context has no namespace $namespace: nothing to remove"
  exit 0
fi

services=$(kubectl -n "$namespace" get rayservices -o name)
echo "From the cluster $context this removes the namespace $namespace with its Secrets and volumes, and first: ${services:-no RayService}"
if ! $yes; then
  [ -t 0 ] || { echo "run it with --yes to remove them without a question" >&2; exit 2; }
  read -r -p "Type the namespace's name to go on: " answer
  [ "$answer" = "$namespace" ] || { echo "nothing was removed" >&2; exit 2; }
fi

if [ -n "$services" ] && [ -z "$(kubectl get deployments --all-namespaces -l app.kubernetes.io/name=kuberay-operator -o name)" ]; then
  echo "KubeRay's operator is not running, and nobody else ends a RayService: install it again (docs/operations.md), then run this again" >&2
  exit 1
fi
kubectl -n "$namespace" delete rayservices --all --wait=false
kubectl -n "$namespace" delete rayclusters --all --wait=false
for kind in rayservices rayclusters; do
  # 310 s for the last request, and what a Job takes to start and to clear Redis
  if ! kubectl -n "$namespace" delete "$kind" --all --timeout=480s; then
    echo "$kind of $namespace did not end: see kubectl -n $namespace get jobs,pods, and the log of kuberay-operator" >&2
    exit 1
  fi
done

if ! kubectl delete namespace "$namespace" --timeout=300s; then
  echo "the namespace did not end: see its conditions, kubectl get namespace $namespace -o yaml" >&2
  exit 1
fi
echo "Removed. What is left: the bucket; kubectl delete -k k8s/monitoring; helm uninstall kuberay-operator -n ray-system"
