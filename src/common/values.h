/*
 * values.h
 *		Values on their way to and from SQL.
 */
#ifndef EVENT_STORE_VALUES_H
#define EVENT_STORE_VALUES_H

#include "postgres.h"

#include "utils/timestamp.h"

typedef struct NameList
{
	int			count;
	text	  **names;
} NameList;

extern NameList values_name_list(Datum array);
extern bool values_has_name(const NameList *list, const char *name, int len);
extern Datum values_int64_array(const int64 *elements, int count);
extern Datum values_int32_array(const int *elements, int count);
extern int64 *values_read_int64(Datum array, int *count);
extern Datum values_text(const char *value);
extern double values_seconds(const Interval *interval);
extern double values_rate(double rate, TimestampTz since, TimestampTz now, int64 count);

#endif
