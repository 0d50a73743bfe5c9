/*
 * headers.c
 *		The headers of a message: a JSON object, as the server writes jsonb.
 *
 * Strings are headers as they are, other values their JSON text; null is none.
 * What comes from the server is valid, so this reads no more than it must.
 */
#include <stdlib.h>
#include <string.h>

#include "relay.h"

static const char *
skip_blanks(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

/* The end of a string, which begins at its quotation mark. */
static const char *
string_end(const char *at)
{
	for (at++; *at != '"' && *at != '\0'; at++)
		if (*at == '\\' && at[1] != '\0')
			at++;
	return *at == '"' ? at + 1 : at;
}

/* The end of any value. */
static const char *
value_end(const char *at)
{
	int			depth = 0;

	for (; *at != '\0'; at++)
	{
		if (*at == '"')
			at = string_end(at) - 1;
		else if (*at == '{' || *at == '[')
			depth++;
		else if ((*at == '}' || *at == ']') && depth-- == 0)
			break;
		else if (*at == ',' && depth == 0)
			break;
	}
	return at;
}

static unsigned
hex(const char *at)
{
	char		digits[5] = {0};

	strncpy(digits, at, 4);
	return (unsigned) strtoul(digits, NULL, 16);
}

static char *
put_code_point(char *to, unsigned point)
{
	if (point < 0x80)
		*to++ = point;
	else if (point < 0x800)
	{
		*to++ = 0xC0 | (point >> 6);
		*to++ = 0x80 | (point & 0x3F);
	}
	else if (point < 0x10000)
	{
		*to++ = 0xE0 | (point >> 12);
		*to++ = 0x80 | ((point >> 6) & 0x3F);
		*to++ = 0x80 | (point & 0x3F);
	}
	else
	{
		*to++ = 0xF0 | (point >> 18);
		*to++ = 0x80 | ((point >> 12) & 0x3F);
		*to++ = 0x80 | ((point >> 6) & 0x3F);
		*to++ = 0x80 | (point & 0x3F);
	}
	return to;
}

/* What stands between quotation marks; never longer than as it is written. */
static char *
unescape(const char *from, const char *end)
{
	char	   *result = relay_alloc(end - from + 1);
	char	   *to = result;

	for (; from < end; from++)
	{
		unsigned	point;

		if (*from != '\\')
		{
			*to++ = *from;
			continue;
		}
		switch (*++from)
		{
			case 'b':
				*to++ = '\b';
				break;
			case 'f':
				*to++ = '\f';
				break;
			case 'n':
				*to++ = '\n';
				break;
			case 'r':
				*to++ = '\r';
				break;
			case 't':
				*to++ = '\t';
				break;
			case 'u':
				point = hex(from + 1);
				from += 4;
				if (point >= 0xD800 && point < 0xDC00 && from[1] == '\\' && from[2] == 'u')
				{
					point = 0x10000 + ((point - 0xD800) << 10) + (hex(from + 3) - 0xDC00);
					from += 6;
				}
				to = put_code_point(to, point);
				break;
			default:
				*to++ = *from;
		}
	}
	*to = '\0';
	return result;
}

bool
headers_parse(Message *message, const char *json)
{
	const char *at = skip_blanks(json);
	int			room = 0;

	message->headers = NULL;
	message->nheaders = 0;
	if (*at != '{')
		return false;
	at = skip_blanks(at + 1);
	while (*at == '"')
	{
		const char *name = at + 1;
		const char *name_end = string_end(at);
		const char *value = skip_blanks(skip_blanks(name_end) + 1);
		const char *end;

		if (*skip_blanks(name_end) != ':')
			return false;
		if (*value == '"')
			end = string_end(value);
		else
			for (end = value_end(value); end > value && strchr(" \t\r\n", end[-1]) != NULL;)
				end--;
		if (strncmp(value, "null", 4) != 0)
		{
			Header	   *header;

			if (message->nheaders == room)
			{
				room = room * 2 + 8;
				message->headers = realloc(message->headers, sizeof(Header) * room);
				if (message->headers == NULL)
					abort();
			}
			header = &message->headers[message->nheaders++];
			header->name = unescape(name, name_end - 1);
			if (*value == '"')
				header->value = unescape(value + 1, end - 1);
			else
			{
				header->value = relay_alloc(end - value + 1);
				memcpy(header->value, value, end - value);
			}
		}
		at = skip_blanks(end);
		if (*at == ',')
			at = skip_blanks(at + 1);
	}
	return *at == '}';
}

void
headers_free(Message *message)
{
	for (int i = 0; i < message->nheaders; i++)
	{
		free(message->headers[i].name);
		free(message->headers[i].value);
	}
	free(message->headers);
	message->headers = NULL;
	message->nheaders = 0;
}
