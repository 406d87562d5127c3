#!/bin/bash
# PostgreSQL's image runs this once, when its volume is new: each service gets a role, which owns only its databases.
set -euo pipefail
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" \
  --set=mlflow="$MLFLOW_DATABASE_PASSWORD" --set=prefect="$PREFECT_DATABASE_PASSWORD" <<'SQL'
create role mlflow login password :'mlflow';
create role prefect login password :'prefect';
create database mlflow owner mlflow;
create database mlflow_auth owner mlflow;
create database prefect owner prefect;
SQL
