-- ---------------------------------------------------------------------------
-- projection: folds as aggregates
-- ---------------------------------------------------------------------------

CREATE FUNCTION event_store.apply_merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_apply_merge_patch';
COMMENT ON FUNCTION event_store.apply_merge_patch(jsonb, jsonb) IS
'apply_merge_patch(target, patch) -> jsonb: target after a JSON merge patch (RFC 7396): fields of patch replace those of target, objects are merged field by field, null removes a field; a patch that is no object takes the place of target. target SQL NULL: there is none yet; patch SQL NULL: target as it is.';

CREATE FUNCTION event_store.merge_patch_step(internal, jsonb) RETURNS internal
LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_merge_patch_step';
COMMENT ON FUNCTION event_store.merge_patch_step(internal, jsonb) IS
'state transition of the aggregate merge_patch()';
CREATE FUNCTION event_store.merge_patch_result(internal) RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_merge_patch_result';
COMMENT ON FUNCTION event_store.merge_patch_result(internal) IS
'result of the aggregate merge_patch()';
CREATE AGGREGATE event_store.merge_patch(patch jsonb) (
	SFUNC = event_store.merge_patch_step,
	STYPE = internal,
	SSPACE = 2048,
	FINALFUNC = event_store.merge_patch_result,
	FINALFUNC_MODIFY = READ_ONLY,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE event_store.merge_patch(jsonb) IS
'merge_patch(patch) -> jsonb: what comes of applying JSON merge patches (RFC 7396) one after the other, to nothing at first: merge_patch(data ORDER BY version). SQL NULLs are passed over; NULL if there is nothing else.';

CREATE FUNCTION event_store.fold_step(internal, text, event_store.recorded_event) RETURNS internal
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_fold_step';
COMMENT ON FUNCTION event_store.fold_step(internal, text, event_store.recorded_event) IS
'state transition of the aggregate fold()';
CREATE FUNCTION event_store.fold_result(internal) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_fold_result';
COMMENT ON FUNCTION event_store.fold_result(internal) IS
'result of the aggregate fold()';
-- Unsafe in parallel, as a handler may be that is a function of the user's.
CREATE AGGREGATE event_store.fold(handler text, event event_store.recorded_event) (
	SFUNC = event_store.fold_step,
	STYPE = internal,
	SSPACE = 1024,
	FINALFUNC = event_store.fold_result,
	FINALFUNC_MODIFY = READ_ONLY,
	PARALLEL = UNSAFE
);
COMMENT ON AGGREGATE event_store.fold(text, event_store.recorded_event) IS
'fold(handler, event) -> jsonb: the state that events lead to, in the order in which they come: fold(''sum(amount)'', e ORDER BY e.version). handler: merge_patch, merge_patch(path), count, count(path), sum(path), min(path), max(path), last(path), where path is the place of a value in data (amount, order.amount, or a text array), or the name of a function f(state jsonb, event recorded_event) that returns jsonb; the same for all rows of a group. event: a recorded_event, or a row of the view events; NULL is passed over. NULL if there are no rows. Raises VE002 for an invalid handler, VE015 if a value to be added is no number, 42883 if there is no such function, 42501 without EXECUTE on it.';

CREATE FUNCTION event_store.as_recorded_event(event event_store.events) RETURNS event_store.recorded_event
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_as_recorded_event';
COMMENT ON FUNCTION event_store.as_recorded_event(event_store.events) IS
'as_recorded_event(event) -> recorded_event: a row of the view events without its category; this is the cast, which is made wherever a recorded_event is wanted.';
CREATE CAST (event_store.events AS event_store.recorded_event)
	WITH FUNCTION event_store.as_recorded_event(event_store.events) AS IMPLICIT;
COMMENT ON CAST (event_store.events AS event_store.recorded_event) IS
'rows of the view events where a recorded_event is wanted';
