#!/bin/sh
# Creates the role of the front end in a new PostgreSQL; `redeem init` gives it its rights.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set password="$FRONT_PASSWORD" <<'SQL'
CREATE ROLE redeem_front LOGIN PASSWORD :'password';
SQL
