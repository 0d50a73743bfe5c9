/*
 * cloudevent.h
 *		CloudEvents 1.0 in the JSON event format: made of events, and appended.
 */
#ifndef EVENT_STORE_CLOUDEVENT_H
#define EVENT_STORE_CLOUDEVENT_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* the key of metadata for what a CloudEvent was, and the event does not say */
#define SHADOW_KEY		"$cloudevent"
/* the key of a shadow for what metadata had in its place */
#define SHADOW_DISPLACED	"metadata"
/* the attribute for what an event is, and a CloudEvent has no place for */
#define REST_ATTRIBUTE	"eventstore"

/* the attributes of the specification, and the two members for data */
typedef enum Attribute
{
	CE_ID,
	CE_SOURCE,
	CE_SPECVERSION,
	CE_TYPE,
	CE_DATACONTENTTYPE,
	CE_DATASCHEMA,
	CE_SUBJECT,
	CE_TIME,
	CE_DATA,
	CE_DATA_BASE64,
	CE_NATTRIBUTES
} Attribute;

/* attribute.c */
extern const char *const attribute_names[CE_NATTRIBUTES];
extern int	attribute_find(const char *name, int len);
extern const char *attribute_name_problem(const char *name, int len);
extern const char *attribute_problem(Attribute attribute, const JsonbValue *value);
extern const char *extension_problem(const JsonbValue *value);
extern bool extension_is_field(const char *name, int len, const JsonbValue *value);
extern bool attribute_string(const char *value, int len);
extern bool attribute_uri_reference(const char *value, int len, bool absolute);
extern bool attribute_json_content(const char *type, int len);
extern bool attribute_uuid(const char *value, int len, pg_uuid_t *id);
extern bool attribute_parse_time(const char *value, int len, TimestampTz *time);
extern char *attribute_format_time(TimestampTz time);
extern void attribute_id(pg_uuid_t *id, const char *source, int source_len,
						 const char *name, int name_len);

#endif
