-- ---------------------------------------------------------------------------
-- capture: changes of people's own tables, as events
-- ---------------------------------------------------------------------------

CREATE FUNCTION event_store.capture_changes() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_capture_changes';
REVOKE ALL ON FUNCTION event_store.capture_changes() FROM PUBLIC;
ALTER FUNCTION event_store.capture_changes() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.capture_changes() IS
'capture_changes() -> trigger: appends an event for each row that was inserted, updated or deleted, and for TRUNCATE, in the same transaction. AFTER ... FOR EACH ROW; or AFTER ... FOR EACH STATEMENT REFERENCING OLD TABLE and NEW TABLE, which appends by batches; TRUNCATE: FOR EACH STATEMENT. Arguments, each ''name=value'': category (default the table''s name, with its schema unless that is public); key (columns; default the primary key, or else the replica identity; empty: all events in one stream, named as the category); types (for INSERT, UPDATE, DELETE, TRUNCATE; default <category>.inserted, .updated, .deleted, .truncated); columns (only these) or exclude (all but these); mask (columns whose values are shown as ***); data (changed, the default: of an UPDATE the columns that differ; full: the whole old and new row; new: the new row only); unchanged (skip: no event for an UPDATE that changes nothing captured; append); metadata (any of table, user, session_user, application, transaction); source. The stream is category-key, the values of a key joined by commas. data is {"op", "old", "new"}; a row whose key changes is a delete with "moved_to" and an insert with "moved_from". The owner of the table, not who writes to it, must have INSERT on event_store.events (42501). Raises VE002 for invalid arguments, or a key that is too long for a name, 25006 in a read-only transaction.';

CREATE FUNCTION event_store.check_capture(
	relation regclass,
	OUT trigger text, OUT level text, OUT types text[], OUT category text, OUT key text[],
	OUT columns text[], OUT masked text[], OUT owner text, OUT may_append boolean
) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 4 AS 'MODULE_PATHNAME', 'event_store_check_capture';
COMMENT ON FUNCTION event_store.check_capture(regclass) IS
'check_capture(relation) -> setof (trigger, level, types, category, key, columns, masked, owner, may_append): what the triggers of a table that call capture_changes() do, a row for each: at which level (row or statement), which types of events they append, in which category, by which key, with which columns and which of them masked; whose rights to append count, and whether that role has them. No rows if there is no such trigger. Raises VE002 if the arguments of one are invalid, as its first firing would.';
