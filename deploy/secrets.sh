#!/bin/sh
# Makes the passwords of a new mesh, once:  sh deploy/secrets.sh FOLDER [STORE-HOST] [DATABASE-HOST]
# FOLDER is for its owner alone; the files in it can be read by all, because containers read them as other users.
set -eu
folder=${1:?"name a folder for the secrets"}
store=${2:-valkey} database=${3:-postgresql}
if [ -e "$folder" ]; then
  echo "$folder exists: the passwords in it may be in use; name another folder" >&2
  exit 1
fi
word() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
digest() { printf %s "$1" | sha256sum | cut -d' ' -f1; }
replica=$(word) treasury=$(word) leben=$(word) keys=$(word)
umask 022
mkdir -m 700 "$folder"
sed -e "/^user replica /s/SHA256-OF-ITS-PASSWORD/$(digest "$replica")/" \
    -e "/^user treasury /s/SHA256-OF-ITS-PASSWORD/$(digest "$treasury")/" \
    "$(dirname "$0")/valkey.acl" >"$folder/valkey.acl"
printf %s "$leben" >"$folder/postgresql.password"
word >"$folder/grafana.password"
word >"$folder/ray.token"
cat >"$folder/mesh.env" <<END
LEBEN_STORE_URL=redis://treasury:$treasury@$store:6379/0
LEBEN_REPLICA_STORE_URL=redis://replica:$replica@$store:6379/0
LEBEN_LEDGER_URL=postgresql+psycopg://leben:$leben@$database:5432/leben
LEBEN_KEY_PASSWORD=$keys
END
echo "made $folder; keep a copy apart from this machine: without the password in mesh.env the mesh's keys are lost"
