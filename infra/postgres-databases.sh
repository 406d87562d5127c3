#!/bin/bash
# Run once, by PostgreSQL's image, when its volume is new: a role a service, which owns its databases and nothing else.
set -euo pipefail
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" \
  --set=mlflow="$MLFLOW_DATABASE_PASSWORD" --set=prefect="$PREFECT_DATABASE_PASSWORD" <<'SQL'
create role mlflow login password :'mlflow';
create role prefect login password :'prefect';
create database mlflow owner mlflow;
create database mlflow_auth owner mlflow;
create database prefect owner prefect;
SQL
