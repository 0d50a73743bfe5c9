/*
 * attribute.c
 *		Attributes of CloudEvents: their names, their types, and what is allowed.
 *
 * The functions that end in _problem say what is wrong, NULL for nothing: who
 * appends raises that, who makes a CloudEvent goes another way.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha1.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "cloudevent/cloudevent.h"
#include "common/names.h"

const char *const attribute_names[CE_NATTRIBUTES] = {
	[CE_ID] = "id",
	[CE_SOURCE] = "source",
	[CE_SPECVERSION] = "specversion",
	[CE_TYPE] = "type",
	[CE_DATACONTENTTYPE] = "datacontenttype",
	[CE_DATASCHEMA] = "dataschema",
	[CE_SUBJECT] = "subject",
	[CE_TIME] = "time",
	[CE_DATA] = "data",
	[CE_DATA_BASE64] = "data_base64"
};

/* the namespace of URLs of RFC 9562 */
static const unsigned char url_namespace[UUID_LEN] = {
	0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1,
	0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8
};

#define IS_DIGIT(c)		((c) >= '0' && (c) <= '9')
#define IS_LOWER(c)		((c) >= 'a' && (c) <= 'z')
#define IS_ALPHA(c)		(IS_LOWER(c) || ((c) >= 'A' && (c) <= 'Z'))
#define IS_HEX(c)		(IS_DIGIT(c) || ((c) >= 'a' && (c) <= 'f') || ((c) >= 'A' && (c) <= 'F'))

/* An attribute of the specification by its name, or -1. */
int
attribute_find(const char *name, int len)
{
	for (int i = 0; i < CE_NATTRIBUTES; i++)
		if (strlen(attribute_names[i]) == len && memcmp(attribute_names[i], name, len) == 0)
			return i;
	return -1;
}

const char *
attribute_name_problem(const char *name, int len)
{
	if (len == 0)
		return "A name has at least one character.";
	for (int i = 0; i < len; i++)
		if (!IS_LOWER(name[i]) && !IS_DIGIT(name[i]))
			return "A name consists of the letters a to z and digits.";
	return NULL;
}

/* ----------------------------------------------------------------
 * Types
 * ----------------------------------------------------------------
 */

/*
 * The type String: no control characters, and no code points that Unicode calls
 * noncharacters.  Surrogates cannot stand in a text.
 */
bool
attribute_string(const char *value, int len)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;

	for (int i = 0; i < len;)
	{
		const unsigned char *at = (const unsigned char *) value + i;

		if (*at < 0x20 || *at == 0x7F)
			return false;
		if (*at >= 0x80 && utf8)
		{
			pg_wchar	point = utf8_to_unicode(at);

			if (point < 0xA0 || (point >= 0xFDD0 && point <= 0xFDEF) ||
				(point & 0xFFFE) == 0xFFFE)
				return false;
			i += pg_utf_mblen(at);
		}
		else
			i++;
	}
	return true;
}

/*
 * The types URI-reference, and URI where it is to be absolute, by RFC 3986.  The
 * authority is checked for its characters only.  A URI may have a fragment, which
 * the text of the specification does not want and its JSON schema allows.
 */
bool
attribute_uri_reference(const char *value, int len, bool absolute)
{
	int			scheme = -1;
	int			first_segment = strcspn(pnstrdup(value, len), "/?#");
	bool		fragment = false;

	if (len == 0)
		return false;
	for (int i = 0; i < first_segment; i++)
		if (value[i] == ':')
		{
			scheme = i;
			break;
		}
	if (scheme >= 0)
	{
		if (scheme == 0 || !IS_ALPHA(value[0]))
			return false;
		for (int i = 1; i < scheme; i++)
			if (!IS_ALPHA(value[i]) && !IS_DIGIT(value[i]) && strchr("+-.", value[i]) == NULL)
				return false;
	}
	else if (absolute)
		return false;
	for (int i = scheme + 1; i < len; i++)
	{
		char		c = value[i];

		if (c == '%')
		{
			if (i + 2 >= len || !IS_HEX(value[i + 1]) || !IS_HEX(value[i + 2]))
				return false;
			i += 2;
		}
		else if (c == '#')
		{
			if (fragment)
				return false;
			fragment = true;
		}
		else if (c == '\0' || (!IS_ALPHA(c) && !IS_DIGIT(c) &&
							   strchr("-._~:/?[]@!$&'()*+,;=", c) == NULL))
			return false;
	}
	return true;
}

/* A token of RFC 2045 at this place; returns where it ends. */
static int
skip_token(const char *value, int len, int at)
{
	while (at < len && value[at] > 0x20 && value[at] < 0x7F &&
		   strchr("()<>@,;:\\\"/[]?=", value[at]) == NULL)
		at++;
	return at;
}

static int
skip_blanks(const char *value, int len, int at)
{
	while (at < len && (value[at] == ' ' || value[at] == '\t'))
		at++;
	return at;
}

/* A media type with parameters, by RFC 2045 and RFC 2046. */
static bool
is_media_type(const char *value, int len)
{
	int			begin = 0;
	int			at = skip_token(value, len, 0);

	if (at == 0 || at == len || value[at] != '/')
		return false;
	begin = ++at;
	at = skip_token(value, len, at);
	if (at == begin)
		return false;
	while ((at = skip_blanks(value, len, at)) < len)
	{
		if (value[at] != ';')
			return false;
		begin = at = skip_blanks(value, len, at + 1);
		at = skip_token(value, len, at);
		if (at == begin || at == len || value[at] != '=')
			return false;
		begin = ++at;
		if (at < len && value[at] == '"')
		{
			for (at++; at < len && value[at] != '"'; at++)
				if (value[at] == '\\' && ++at == len)
					return false;
			if (at == len)
				return false;
			at++;
		}
		else if ((at = skip_token(value, len, at)) == begin)
			return false;
	}
	return true;
}

/* Does a media type say that the content is JSON? */
bool
attribute_json_content(const char *type, int len)
{
	const char *slash = memchr(type, '/', len);
	int			begin;
	int			end;

	if (slash == NULL)
		return false;
	begin = slash - type + 1;
	end = skip_token(type, len, begin);
	if (end - begin == 4 && pg_strncasecmp(type + begin, "json", 4) == 0)
		return true;
	return end - begin > 5 && pg_strncasecmp(type + end - 5, "+json", 5) == 0;
}

/* Base64 of RFC 4648, section 4, padded. */
static bool
is_base64(const char *value, int len)
{
	int			padding = 0;

	if (len % 4 != 0)
		return false;
	while (padding < 2 && padding < len && value[len - 1 - padding] == '=')
		padding++;
	for (int i = 0; i < len - padding; i++)
		if (!IS_ALPHA(value[i]) && !IS_DIGIT(value[i]) && value[i] != '+' && value[i] != '/')
			return false;
	return true;
}

/* A UUID as PostgreSQL writes it: another spelling is another id. */
bool
attribute_uuid(const char *value, int len, pg_uuid_t *id)
{
	if (len != 36)
		return false;
	for (int i = 0; i < 36; i++)
		if (i == 8 || i == 13 || i == 18 || i == 23 ? value[i] != '-' :
			!IS_DIGIT(value[i]) && !(value[i] >= 'a' && value[i] <= 'f'))
			return false;
	*id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(pnstrdup(value, len))));
	return true;
}

/*
 * The id of an event whose CloudEvent's id is no UUID: version 5, in the namespace
 * of URLs, of source, a blank (which no source has), and id.
 */
void
attribute_id(pg_uuid_t *id, const char *source, int source_len, const char *name, int name_len)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA1);
	unsigned char digest[SHA1_DIGEST_LENGTH];
	char	   *text = psprintf("%s %s", pnstrdup(source, source_len), pnstrdup(name, name_len));
	char	   *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	if (hash == NULL || pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, url_namespace, UUID_LEN) < 0 ||
		pg_cryptohash_update(hash, (const uint8 *) utf8, strlen(utf8)) < 0 ||
		pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute SHA-1")));
	pg_cryptohash_free(hash);
	memcpy(id->data, digest, UUID_LEN);
	id->data[6] = (id->data[6] & 0x0F) | 0x50;
	id->data[8] = (id->data[8] & 0x3F) | 0x80;
}

/* So many digits at this place, or -1. */
static int
digits(const char *value, int at, int count)
{
	int			result = 0;

	for (int i = 0; i < count; i++)
	{
		if (!IS_DIGIT(value[at + i]))
			return -1;
		result = result * 10 + value[at + i] - '0';
	}
	return result;
}

/* A time by RFC 3339; what it has beyond microseconds is cut off. */
bool
attribute_parse_time(const char *value, int len, TimestampTz *time)
{
	struct pg_tm tm = {0};
	fsec_t		fsec = 0;
	int			at = 19;
	int			zone = 0;

	/* YYYY-MM-DDTHH:MM:SSZ is the shortest */
	if (len < 20 || value[4] != '-' || value[7] != '-' ||
		(value[10] != 'T' && value[10] != 't') || value[13] != ':' || value[16] != ':')
		return false;
	tm.tm_year = digits(value, 0, 4);
	tm.tm_mon = digits(value, 5, 2);
	tm.tm_mday = digits(value, 8, 2);
	tm.tm_hour = digits(value, 11, 2);
	tm.tm_min = digits(value, 14, 2);
	tm.tm_sec = digits(value, 17, 2);
	if (tm.tm_year < 0 || tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 ||
		tm.tm_mday > day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] ||
		tm.tm_hour < 0 || tm.tm_hour > 23 || tm.tm_min < 0 || tm.tm_min > 59 ||
		tm.tm_sec < 0 || tm.tm_sec > 60)
		return false;
	if (value[at] == '.')
	{
		int			scale = 100000;

		if (++at == len || !IS_DIGIT(value[at]))
			return false;
		for (; at < len && IS_DIGIT(value[at]); at++, scale /= 10)
			fsec += (value[at] - '0') * scale;
	}
	if (at == len)
		return false;
	if (value[at] == 'Z' || value[at] == 'z')
		at++;
	else
	{
		int			hours;
		int			minutes;

		if ((value[at] != '+' && value[at] != '-') || len - at != 6 || value[at + 3] != ':')
			return false;
		hours = digits(value, at + 1, 2);
		minutes = digits(value, at + 4, 2);
		if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
			return false;
		zone = (hours * 60 + minutes) * SECS_PER_MINUTE;
		if (value[at] == '+')
			zone = -zone;		/* PostgreSQL counts to the west */
		at = len;
	}
	return at == len && tm2timestamp(&tm, fsec, &zone, time) == 0;
}

/* A time by RFC 3339, in UTC, as short as it can be; NULL if its years can't. */
char *
attribute_format_time(TimestampTz time)
{
	struct pg_tm tm;
	fsec_t		fsec;
	char	   *result;
	int			len;

	if (TIMESTAMP_NOT_FINITE(time) ||
		timestamp2tm(time, NULL, &tm, &fsec, NULL, NULL) != 0 ||
		tm.tm_year < 0 || tm.tm_year > 9999)
		return NULL;
	result = psprintf("%04d-%02d-%02dT%02d:%02d:%02d", tm.tm_year, tm.tm_mon, tm.tm_mday,
					  tm.tm_hour, tm.tm_min, tm.tm_sec);
	if (fsec != 0)
	{
		result = psprintf("%s.%06d", result, (int) fsec);
		for (len = strlen(result); result[len - 1] == '0';)
			result[--len] = '\0';
	}
	return psprintf("%sZ", result);
}

/* ----------------------------------------------------------------
 * Values
 * ----------------------------------------------------------------
 */

/* What is wrong with a value, which is not null, of an attribute of the specification? */
const char *
attribute_problem(Attribute attribute, const JsonbValue *value)
{
	const char *text;
	int			len;
	TimestampTz time;

	if (attribute == CE_DATA)
		return NULL;
	if (value->type != jbvString)
		return "It must be a JSON string.";
	text = value->val.string.val;
	len = value->val.string.len;
	if (attribute == CE_DATA_BASE64)
		return is_base64(text, len) ? NULL : "It must be Base64 by RFC 4648, padded.";
	if (len == 0)
		return "It must not be empty.";
	if (!attribute_string(text, len))
		return "It has a control character, or a code point that is none of a character.";
	switch (attribute)
	{
		case CE_SPECVERSION:
			return len == 3 && memcmp(text, "1.0", 3) == 0 ? NULL : "It must be 1.0.";
		case CE_SOURCE:
			return attribute_uri_reference(text, len, false) ? NULL :
				"It must be a URI reference by RFC 3986.";
		case CE_DATASCHEMA:
			return attribute_uri_reference(text, len, true) ? NULL :
				"It must be a URI by RFC 3986.";
		case CE_DATACONTENTTYPE:
			return is_media_type(text, len) ? NULL :
				"It must be a media type by RFC 2046.";
		case CE_TIME:
			return attribute_parse_time(text, len, &time) ? NULL :
				"It must be a time by RFC 3339.";
		default:
			return NULL;
	}
}

/* Is it a whole number from low to the greatest Integer, written as one? */
static bool
is_integer(const JsonbValue *value, int32 low)
{
	char	   *text;
	long		number;
	char	   *end;

	if (value->type != jbvNumeric)
		return false;
	text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	if (strlen(text) > 11)
		return false;
	number = strtol(text, &end, 10);
	return *end == '\0' && number >= low && number <= PG_INT32_MAX;
}

/* What is wrong with a value of an extension attribute? */
const char *
extension_problem(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return attribute_string(value->val.string.val, value->val.string.len) ? NULL :
				"It has a control character, or a code point that is none of a character.";
		case jbvBool:
			return NULL;
		case jbvNumeric:
			return is_integer(value, PG_INT32_MIN) ? NULL :
				"A number must be whole, from -2147483648 to 2147483647, and written without a fraction.";
		default:
			return "It must be a JSON string, number or boolean.";
	}
}

/* Would an extension attribute become one of an event's fields? */
bool
extension_is_field(const char *name, int len, const JsonbValue *value)
{
	pg_uuid_t	id;

#define NAME_IS(s)	(len == strlen(s) && memcmp(name, s, len) == 0)
	if (NAME_IS("correlationid"))
		return value->type == jbvString && value->val.string.len > 0 &&
			value->val.string.len <= MAX_NAME_BYTES;
	if (NAME_IS("causationid"))
		return value->type == jbvString &&
			attribute_uuid(value->val.string.val, value->val.string.len, &id);
	/* 1 goes without saying, so if it is said that must be kept */
	if (NAME_IS("schemaversion"))
		return is_integer(value, 2);
	return NAME_IS(REST_ATTRIBUTE);
}
