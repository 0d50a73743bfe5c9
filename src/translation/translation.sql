-- ---------------------------------------------------------------------------
-- translation: inner events as outer ones
-- ---------------------------------------------------------------------------

CREATE TABLE event_store.translation (
	name		text COLLATE "C" NOT NULL,
	rules		jsonb NOT NULL,
	created_at	timestamptz NOT NULL DEFAULT now(),
	altered_at	timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT translation_pkey PRIMARY KEY (name)
);
ALTER TABLE event_store.translation OWNER TO @extowner@;
COMMENT ON TABLE event_store.translation IS 'what inner events become for others; see the view translations';
COMMENT ON COLUMN event_store.translation.name IS 'the translation''s name';
COMMENT ON COLUMN event_store.translation.rules IS 'its rules, as create_translation() was given them';
COMMENT ON COLUMN event_store.translation.created_at IS 'when it was made';
COMMENT ON COLUMN event_store.translation.altered_at IS 'when its rules were last altered';
SELECT pg_extension_config_dump('event_store.translation', '');

CREATE FUNCTION event_store.create_translation(name text, rules jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_create_translation';
REVOKE ALL ON FUNCTION event_store.create_translation(text, jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.create_translation(text, jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.create_translation(text, jsonb) IS
'create_translation(name, rules) -> void: makes a translation of inner events into outer ones. rules: a JSON object, or an array of them, of which the first that fits an event makes the outer event; an event that none fits is passed over. Which events a rule fits: types and categories, arrays of names (absent: all), and where, an SQL condition. What it makes: type, stream, source, schema_version (absent: 1), correlation_id, causation_id (absent: the inner one''s): a constant, null where the event may have none, or {"sql": expression}; data (absent: the inner one''s) and metadata (absent: traceparent and tracestate): an object with the keys, in the order in which they are applied, sql, an expression for the whole; pick, an array of paths that are kept, nothing else; drop, an array of paths; rename, an object of paths to paths; set, an object of paths to constants; compute, an object of paths to SQL expressions (SQL NULL: nothing is put there); or just an array, which is pick. A path is the names of fields with dots between them, in arrays also an array of names; those of pick and drop go through JSON arrays, and are meant of each element. Expressions see the columns of recorded_event, and category; of the event before the rule. They must not call volatile functions, be aggregates or sets (but in a subquery), or lock rows, and are run as the owner of the store, in a restricted context, with search_path pg_catalog and time zone UTC. Only the owner of the store may. Raises VE002 for invalid rules, VE024 if the name is taken, and the errors of expressions that cannot be prepared; 25006 where nothing may be written.';

CREATE FUNCTION event_store.alter_translation(name text, rules jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_alter_translation';
REVOKE ALL ON FUNCTION event_store.alter_translation(text, jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.alter_translation(text, jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.alter_translation(text, jsonb) IS
'alter_translation(name, rules) -> void: gives a translation other rules, as in create_translation(), for all who use it once this is committed. Only the owner of the store may. Raises VE002, VE023 if there is none of that name, and what create_translation() raises.';

CREATE FUNCTION event_store.drop_translation(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_translation';
REVOKE ALL ON FUNCTION event_store.drop_translation(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_translation(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_translation(text) IS
'drop_translation(name) -> void: drops a translation. Only the owner of the store may. Raises VE023 if there is none of that name, 23503 if a route of the outbox names it, 25006 where nothing may be written.';

CREATE FUNCTION event_store.translate(name text, event event_store.recorded_event)
RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1 COST 100 AS 'MODULE_PATHNAME', 'event_store_translate';
REVOKE ALL ON FUNCTION event_store.translate(text, event_store.recorded_event) FROM PUBLIC;
ALTER FUNCTION event_store.translate(text, event_store.recorded_event) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.translate(text, event_store.recorded_event) IS
'translate(name, event) -> setof recorded_event: what a translation makes of an event; no row for an event that no rule fits, or NULL. position, version, event_id, recorded_at and occurred_at stay what they are. Whoever may call it makes the expressions run with the rights of the owner of the store. Raises VE023 if there is no such translation, VE002 for a result that is no valid event, and the errors of its expressions, with translation, rule, stream and version in the CONTEXT.';

CREATE VIEW event_store.translations AS
SELECT t.name,
	   r.number::int AS rule,
	   r.rule -> 'types' AS types,
	   r.rule -> 'categories' AS categories,
	   r.rule ->> 'where' AS condition,
	   coalesce(r.rule -> 'type' ->> 'sql', r.rule ->> 'type') AS type,
	   r.rule AS definition,
	   t.created_at,
	   t.altered_at
  FROM event_store.translation AS t,
	   jsonb_array_elements(CASE jsonb_typeof(t.rules) WHEN 'array' THEN t.rules ELSE jsonb_build_array(t.rules) END)
	   WITH ORDINALITY AS r(rule, number);
ALTER VIEW event_store.translations OWNER TO @extowner@;
COMMENT ON VIEW event_store.translations IS 'all translations, a row for each rule';
COMMENT ON COLUMN event_store.translations.name IS 'the translation''s name';
COMMENT ON COLUMN event_store.translations.rule IS 'number of the rule: the first that fits an event is applied';
COMMENT ON COLUMN event_store.translations.types IS 'types of the inner events; NULL: all';
COMMENT ON COLUMN event_store.translations.categories IS 'categories of the inner events; NULL: all';
COMMENT ON COLUMN event_store.translations.condition IS 'the condition, in SQL; NULL: none';
COMMENT ON COLUMN event_store.translations.type IS 'type of the outer event, or the expression for it; NULL: that of the inner one';
COMMENT ON COLUMN event_store.translations.definition IS 'all of the rule';
COMMENT ON COLUMN event_store.translations.created_at IS 'when the translation was made';
COMMENT ON COLUMN event_store.translations.altered_at IS 'when its rules were last altered';
