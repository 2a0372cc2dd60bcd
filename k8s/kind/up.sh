#!/usr/bin/env bash
# The demo bank on Kubernetes on this machine, from nothing to an answer: images, a kind cluster, KubeRay's operator, the
# overlay local, one question. Run again, it goes on where it stopped. `make kind` runs it.
#
# Exit codes: 0 the question was answered, 1 a step failed, 2 something is missing, which the last line names.
set -euo pipefail

cluster=dlp
version=0.1.0
kuberay=1.7.0
images=("dlp-serve:$version-cpu" "dlp-serve:$version-demo")
port=${DLP_KIND_PORT:-8000}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

step() { echo "== $*"; }
missing() {
  echo "$1" >&2
  exit 2
}
failed() {
  echo "$1" >&2
  exit 1
}
needs() { command -v "$1" >/dev/null || missing "$1 is missing: install it ($2), then run make kind again"; }
in_cluster() { kubectl --context "kind-$cluster" "$@"; }

step "tools"
needs docker https://docs.docker.com/engine/install/
needs kind https://kind.sigs.k8s.io/docs/user/quick-start/#installation
needs kubectl https://kubernetes.io/docs/tasks/tools/
needs helm https://helm.sh/docs/intro/install/
needs curl https://curl.se/download.html
resources=$(docker info --format '{{.NCPU}} {{.MemTotal}}' 2>/dev/null) ||
  missing "Docker does not answer: start it, or join the group docker (docker info says more)"
read -r cpus memory <<<"$resources"
if [ "$cpus" -lt 4 ] || [ "$memory" -lt 7500000000 ]; then
  missing "Docker has $cpus CPUs and $((memory / 1000000000)) GB of memory, and 4 and 8 are needed: raise them in its settings"
fi

for image in "${images[@]}"; do
  if ! docker image inspect "$image" >/dev/null 2>&1; then
    step "build $image"
    docker build --target "${image##*-}" -t "$image" . || failed "$image was not built: the lines above say why"
  fi
done

if ! kind get clusters 2>/dev/null | grep -qx "$cluster"; then
  step "cluster $cluster"
  kind create cluster --config k8s/kind/cluster.yaml --wait 180s || failed "kind made no cluster: the lines above say why"
fi
step "images into the cluster"
kind load docker-image --name "$cluster" "${images[@]}" || failed "the images were not loaded: is the disk full?"

step "KubeRay's operator $kuberay"
helm upgrade --install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ \
  --version "$kuberay" --kube-context "kind-$cluster" --namespace ray-system --create-namespace --wait --timeout 5m ||
  failed "the operator did not start: kubectl --context kind-$cluster -n ray-system get pods"

step "k8s/overlays/local"
in_cluster apply -k k8s/overlays/local || failed "the manifests were refused: the lines above say which"
step "until it serves, some minutes"
if ! in_cluster -n dlp wait --for=condition=Ready rayservice/dlp --timeout=900s; then
  in_cluster -n dlp get pods >&2 || true
  failed "no pod serves after 15 minutes: kubectl --context kind-$cluster -n dlp describe rayservice dlp says why"
fi

step "a question"
in_cluster -n dlp port-forward service/dlp-serve-svc "$port:8000" >/dev/null &
forward=$!
trap 'kill "$forward" 2>/dev/null || true' EXIT
key=$(in_cluster -n dlp get secret dlp-keys --ignore-not-found -o 'jsonpath={.data.keys\.yaml}' | base64 -d | sed -n 's/^ *key: *//p')
# the key in no command line, which everybody on the machine can read
answer=$(curl -sS --fail --retry 10 --retry-delay 1 --retry-all-errors "http://127.0.0.1:$port/v1/chat/completions" \
  -H 'content-type: application/json' -H @<(printf 'authorization: Bearer %s' "${key%%$'\n'*}") \
  -d '{"model": "auto", "messages": [{"role": "user", "content": "Cron expression for every weekday at 7:30 am"}]}') ||
  failed "it does not answer on port $port: is the port taken (DLP_KIND_PORT names another one)?"
echo "$answer"
grep -q '"adapter": *"cron"' <<<"$answer" || failed "the answer above is not by the adapter cron"

cat <<END
== it works
  kubectl --context kind-$cluster -n dlp port-forward service/dlp-serve-svc 8000    # to ask it more
  kind delete cluster --name $cluster                                               # removes everything
END
