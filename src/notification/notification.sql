-- ---------------------------------------------------------------------------
-- notification: waking those who wait for events
-- ---------------------------------------------------------------------------

CREATE TABLE event_store.notification_told (
	id			boolean NOT NULL DEFAULT true CHECK (id),
	position	bigint NOT NULL,
	CONSTRAINT notification_told_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);
ALTER TABLE event_store.notification_told OWNER TO @extowner@;
COMMENT ON TABLE event_store.notification_told IS 'one row, if there ever was a worker: how far it has told what was appended';
COMMENT ON COLUMN event_store.notification_told.id IS 'there is one row';
COMMENT ON COLUMN event_store.notification_told.position IS 'of the last event that listeners were told of, as of a second ago or so: the next worker goes on from there';
SELECT pg_extension_config_dump('event_store.notification_told', '');

CREATE FUNCTION event_store.notify_listeners(after_position bigint) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_notify_listeners';
REVOKE ALL ON FUNCTION event_store.notify_listeners(bigint) FROM PUBLIC;
ALTER FUNCTION event_store.notify_listeners(bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.notify_listeners(bigint) IS
'notify_listeners(after_position) -> bigint: sends notifications for the events after a position, up to the settled mark, or for the next 100,000 or so; returns the position to go on from. The worker does this whenever events are committed; who has no worker, and has set event_store.notify to worker or off, can call it on a schedule. Raises VE002 for NULL or a negative position.';
