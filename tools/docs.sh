#!/bin/sh
# The pages of modules and roles as a site: tools/docs.sh FOLDER writes FOLDER/html.
set -eu
cd "$(dirname "$0")/.."
rm -rf "$1"
mkdir -p "$1/rst"
chmod go-w "$1/rst" # antsibull-docs insists
export PATH="$PWD/.venv-docs/bin:$PATH" ANSIBLE_COLLECTIONS_PATH="$PWD/.venv-docs/collections"
antsibull-docs collection --use-current --squash-hierarchy --fail-on-error --dest-dir "$1/rst" stateful.dbops
# Two labels of Ansible's own site (ref.ref) cannot be resolved without fetching its index.
sphinx-build -q -W --keep-going -C -D project=stateful.dbops -D extensions=sphinx_antsibull_ext -D root_doc=index \
    -D html_theme=sphinx_ansible_theme -D suppress_warnings=ref.ref "$1/rst" "$1/html"
echo "$1/html/index.html"
