/*
 * values.c
 *		Values on their way to and from SQL: lists of names, arrays, lengths of time,
 *		and rates.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type_d.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "common/values.h"

/* seconds that a rate looks back */
#define RATE_WINDOW		60.0

/* The names of an array of ours, which has no NULL, in the current context. */
NameList
values_name_list(Datum array)
{
	NameList	list;
	Datum	   *elements;
	bool	   *nulls;

	deconstruct_array(DatumGetArrayTypePCopy(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &list.count);
	list.names = palloc(sizeof(text *) * Max(list.count, 1));
	for (int i = 0; i < list.count; i++)
		list.names[i] = DatumGetTextPP(elements[i]);
	return list;
}

bool
values_has_name(const NameList *list, const char *name, int len)
{
	for (int i = 0; i < list->count; i++)
		if (VARSIZE_ANY_EXHDR(list->names[i]) == len &&
			memcmp(VARDATA_ANY(list->names[i]), name, len) == 0)
			return true;
	return false;
}

Datum
values_int64_array(const int64 *elements, int count)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(count, 1));
	ArrayType  *array;

	for (int i = 0; i < count; i++)
		values[i] = Int64GetDatum(elements[i]);
	array = construct_array(values, count, INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
							TYPALIGN_DOUBLE);
	pfree(values);
	return PointerGetDatum(array);
}

Datum
values_int32_array(const int *elements, int count)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(count, 1));
	ArrayType  *array;

	for (int i = 0; i < count; i++)
		values[i] = Int32GetDatum(elements[i]);
	array = construct_array(values, count, INT4OID, sizeof(int32), true, TYPALIGN_INT);
	pfree(values);
	return PointerGetDatum(array);
}

/* The elements of an array of ours, which has no NULL, in the current context. */
int64 *
values_read_int64(Datum array, int *count)
{
	ArrayType  *copy = DatumGetArrayTypePCopy(array);

	*count = ARR_NDIM(copy) == 1 ? ARR_DIMS(copy)[0] : 0;
	return (int64 *) ARR_DATA_PTR(copy);
}

Datum
values_text(const char *value)
{
	return PointerGetDatum(cstring_to_text(value));
}

/* A length of time in seconds, a month as 30 days. */
double
values_seconds(const Interval *interval)
{
	return interval->time / (double) USECS_PER_SEC + interval->day * 86400.0 +
		interval->month * (30 * 86400.0);
}

/*
 * How many there are a second, over the last minute or so, after so many more: it
 * was this rate at a time, since when there were none.
 */
double
values_rate(double rate, TimestampTz since, TimestampTz now, int64 count)
{
	double		seconds = Max((double) (now - since) / USECS_PER_SEC, 0.0);

	/* as if they had come evenly */
	return rate * exp(-seconds / RATE_WINDOW) +
		count * (seconds > 0 ? -expm1(-seconds / RATE_WINDOW) / seconds : 1 / RATE_WINDOW);
}
