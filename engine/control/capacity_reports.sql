-- Used by engine/control/capacity_reports.py.

-- name: get
SELECT id, at, actor, details FROM acts WHERE id = $1;

-- name: page
SELECT id, at, actor, details FROM acts WHERE act = $3 AND id < $2 ORDER BY id DESC LIMIT $1;
