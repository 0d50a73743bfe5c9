-- ---------------------------------------------------------------------------
-- notification: waking those who wait for events
-- ---------------------------------------------------------------------------

CREATE FUNCTION event_store.notify_listeners(after_position bigint) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_notify_listeners';
REVOKE ALL ON FUNCTION event_store.notify_listeners(bigint) FROM PUBLIC;
ALTER FUNCTION event_store.notify_listeners(bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.notify_listeners(bigint) IS
'notify_listeners(after_position) -> bigint: sends notifications for the events after a position, up to the settled mark, or for the next 100,000 or so; returns the position to go on from. The worker does this whenever events are committed; who has no worker, and has set event_store.notify to worker or off, can call it on a schedule. Raises VE002 for NULL or a negative position.';
