#!/usr/bin/env bash
# Builds the pinned Weaviate server from source into Go's bin folder: minutes once, seconds when it is there.
set -euo pipefail
version=$(cat "$(dirname "$0")/version")
command -v go >/dev/null || { echo "Go is needed to build Weaviate: https://go.dev/dl" >&2; exit 2; }
go install "github.com/weaviate/weaviate/cmd/weaviate-server@${version}"
bin=$(go env GOBIN)
echo "${bin:-$(go env GOPATH)/bin}/weaviate-server"
